"""The scheduler's part of Dynamic Resource Allocation: claims get devices. No I/O.

`allocator` chooses devices for one claim, `selectors` reads what DeviceClasses select by, `claims`
does it for the pods of a simulated node, with the objects of `sim.apiserver`.
"""
