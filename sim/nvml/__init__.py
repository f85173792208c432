"""NVML over a simulated node: a `libnvidia-ml.so.1` whose answers come from the node's process.

The library (`library/`, with the functions that `sim.nvml.library` writes) carries every call over
a unix socket to `sim.nvml.server`, which responds from the one live node. `sim.nvml.dispatch` lists
the functions; nothing here is imported before the first call.
"""
