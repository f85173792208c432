"""What each function answers, by theme; `sim.nvml.table` has them all together."""
