"""`nvidia-smi` for a simulated node: a client of the simulated library like any other program.

`program` reads the command line. What a GPU says is in `fields`, one entry for each fact with its
unit; the reports arrange them: `report` as text or XML, `query` as CSV, `table` as the summary.
"""
