"""Dynamic Resource Allocation without its I/O: what is offered, in which slices, and claims."""
