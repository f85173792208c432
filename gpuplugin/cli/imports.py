"""Imports without the garbage collector."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def without_collector() -> Iterator[None]:
    """What is made meanwhile stays as long as the process: the collector never walks over it."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
