"""What became of the GPUs' health since the start: time out of use, and the last changes.

Written by the event loop, read from any thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

_MAX_CHANGES = 500


@dataclass(frozen=True, slots=True)
class Change:
    """A GPU or MIG device came into a state at `at_s` (seconds since the epoch)."""

    at_s: float
    uuid: str
    index: str
    state: str
    reason: str


class HealthRecord:
    """Kept for each GPU and MIG device that was ever listed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changes: deque[Change] = deque(maxlen=_MAX_CHANGES)
        self._sick_s: dict[tuple[str, str], float] = {}
        self._sick_since_s: dict[tuple[str, str], float] = {}

    def changed(self, uuid: str, index: str, state: str, reason: str, *, healthy: bool) -> None:
        """It came into another state just now."""
        now_s, unit = time.monotonic(), (uuid, index)
        with self._lock:
            since_s = self._sick_since_s.pop(unit, None)
            self._sick_s[unit] = self._sick_s.get(unit, 0.0) + (
                0.0 if since_s is None else now_s - since_s
            )
            if not healthy:
                self._sick_since_s[unit] = now_s
            self._changes.append(Change(time.time(), uuid, index, state, reason))

    def unhealthy_seconds(self) -> dict[tuple[str, str], float]:
        """Seconds out of use, by UUID and index."""
        now_s = time.monotonic()
        with self._lock:
            return {
                unit: sick_s + now_s - self._sick_since_s.get(unit, now_s)
                for unit, sick_s in self._sick_s.items()
            }

    def changes(self, since_s: float) -> tuple[Change, ...]:
        """Changes since a moment (seconds since the epoch), oldest first."""
        with self._lock:
            return tuple(change for change in self._changes if change.at_s >= since_s)
