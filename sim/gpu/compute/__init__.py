"""How contexts share the compute of one GPU: schedulers in integer nanoseconds, without a clock.

Nothing here knows simpy, tenants or memory. `engine` says what all of them have in common.
"""
