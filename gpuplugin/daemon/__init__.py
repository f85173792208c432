"""The running plugin: asyncio, one task per concern, state on the event loop alone.

What is decided here is when something happens. What GPUs become (`gpuplugin.core`) and how the
kubelet is spoken to (`gpuplugin.kubelet`) is decided elsewhere.
"""
