"""Pure logic: no I/O, no clock, no threads, no gRPC, no logging. Time is an argument."""
