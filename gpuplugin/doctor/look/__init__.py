"""Gathers facts of a node: reads files, connects to sockets, asks the driver. Judges nothing.

`gather` in `look.node` is the one entrance. Whatever cannot be read becomes a fact, not an error,
and nothing waits longer than its deadline.
"""
