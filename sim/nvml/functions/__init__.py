"""What each function answers, by theme; `sim.nvml.dispatch` has the whole table."""
