"""Measures the plugin, other plugins and the simulator, each against a floor of the same run.

`gpuplugin bench` is the way in (`benchmarks.run`). How it is measured: docs/performance.md.
"""
