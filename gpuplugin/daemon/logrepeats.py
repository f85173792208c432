"""Keeps a log readable when something says the same again and again."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

QUIET_S = 60.0
_MAX_TEXTS = 1000


@dataclass(slots=True)
class _Told:
    at_s: float
    left_out: int = 0


class RepeatFilter(logging.Filter):
    """Lets a text through once within `QUIET_S`.

    The next one after that has `repeated`, how many were left out. Texts of level debug always
    pass: who asks for them wants all.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._told: dict[tuple[int, str], _Told] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        if record.levelno <= logging.DEBUG:
            return True
        key, now_s = (record.levelno, record.getMessage()), self._clock()
        with self._lock:
            told = self._told.get(key)
            if told is not None and now_s - told.at_s < QUIET_S:
                told.left_out += 1
                return False
            if told is not None and told.left_out:
                record.repeated = told.left_out
            # Texts in the order in which they were last told: the first are the oldest.
            self._told.pop(key, None)
            self._told[key] = _Told(now_s)
            if len(self._told) > _MAX_TEXTS:
                del self._told[next(iter(self._told))]
        return True
