"""A simulated node: its GPUs, driver, scenario and pods, and the two ways to reach it."""
