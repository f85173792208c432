"""The simulated NVML library in the process of a test."""

from __future__ import annotations

import _ctypes
import ctypes
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pynvml
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def bound(library: Path, socket: Path) -> Iterator[None]:
    """The binding calls this library, which calls the node at `socket`.

    It is unloaded afterwards, so that the driver's own can be loaded in the same process.
    """
    loaded = ctypes.CDLL(str(library))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUPLUGIN_SIM_NVML", str(socket))
        patch.setattr(pynvml, "nvmlLib", loaded)
        patch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        try:
            yield
        finally:
            _ctypes.dlclose(loaded._handle)
