"""Measures the plugin, other plugins and the simulator, each against a floor of the same run.

`gpuplugin bench` calls `benchmarks.run`. How it is measured: docs/performance.md.
"""

SUITES = ("allocate", "prefer", "listing", "life", "faults", "claims", "simulator")
"""Each is a module of `benchmarks.suites`; `gpuplugin bench` names them in its help."""
