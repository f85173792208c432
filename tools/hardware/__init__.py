"""`make hardware`: this project's parts on a machine with an NVIDIA driver, and a report of it.

`__main__` has the list of steps, `run` holds their limits, `node`, `daemon` and `load` have what
each one does, and `report` makes what a person sends. docs/hardware.md is for users.
"""
