"""What the user wrote: the file (NVIDIA's v1 format), environment variables and flags.

`settings` says what may be written, `options` lists flags and variables, `load` puts the layers
together. What the configuration means for devices is decided in `gpuplugin.core`.
"""
