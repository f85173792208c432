"""The configuration: the file (NVIDIA's v1 format), environment variables and flags.

`settings` declares the keys, `options` lists flags and variables, `load` merges the layers.
What the configuration means for devices is decided in `gpuplugin.core`.
"""
