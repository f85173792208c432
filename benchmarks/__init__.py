"""Measures the plugin, other device plugins and the simulator, each against a floor of the same run.

`gpuplugin bench` is the way in (`benchmarks.run`). How it is measured: docs/performance.md.
"""
