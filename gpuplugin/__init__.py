"""A Kubernetes GPU device plugin with time slicing.

Three rings, each importing only inwards: `core` (pure logic), `kubelet` (the protocol) and
`daemon` (asyncio). `config` reads what the user wrote, `cli` is the command line.
"""
