"""Waiting for a condition with a deadline: the one place where these tests let time pass."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEADLINE_S = 20.0
"""Generous: a condition that comes true ends the wait at once."""

_POLL_S = 0.02

T = TypeVar("T")


def eventually(condition: Callable[[], T | None], timeout_s: float = DEADLINE_S) -> T:
    """The first true value of `condition`; an AssertionError if it never is."""
    deadline_s = time.monotonic() + timeout_s
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline_s:
            raise AssertionError(f"not so after {timeout_s:g} s; the last value was {value!r}")
        pause.wait(_POLL_S)


def becomes_a_file(folder: Path) -> bool:
    """Put a file in the place of a folder; False if somebody made the folder anew meanwhile."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.write_text("in the way")
    except IsADirectoryError:
        return False
    return True


async def becomes_true(condition: Callable[[], object]) -> None:
    """As `eventually`, while the loop goes on."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not so after {DEADLINE_S:g} s"
        await asyncio.sleep(0.01)
