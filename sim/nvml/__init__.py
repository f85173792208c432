"""NVML over a simulated node: a `libnvidia-ml.so.1` whose answers come from the node's process.

The library (`library/`, with the functions that `sim.nvml.generate` writes) carries every call over
a unix socket to `sim.nvml.server`, which answers it from the one live node. `sim.nvml.table` lists
the functions; nothing here is imported before somebody calls.
"""
