"""The running plugin: asyncio, one task per concern, state on the event loop alone.

The decisions about GPUs are in `gpuplugin.core`, the kubelet's protocols in `gpuplugin.kubelet`.
"""
