"""Loads what the kubelet and Prometheus ask for later: the start does not wait for it.

Whoever asks sooner loads it then.
"""

from __future__ import annotations

import asyncio
import threading
from importlib import import_module

AFTER_S = 1.0
_MODULES = (
    "gpuplugin.kubelet.requests",
    "gpuplugin.daemon.http.responses",
    "gpuplugin.daemon.http.exposition",
    "gpuplugin.daemon.hardware.sampler",
    "gpuplugin.daemon.http.usagemetrics",
)


async def load_later() -> None:
    """Wait until the kubelet is likely to be served, and load the rest in a thread."""
    await asyncio.sleep(AFTER_S)
    threading.Thread(target=_load, name="loader", daemon=True).start()


def _load() -> None:
    for name in _MODULES:
        import_module(name)
