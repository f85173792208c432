"""Waiting for a condition with a deadline: the one place where these tests let time pass."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

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
