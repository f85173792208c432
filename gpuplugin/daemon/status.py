"""How the daemon's parts are doing: what /health and /ready tell, readable from any thread."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the daemon: `ok` and a text, unchanged since `since_s` (monotonic).

    `last_ok_s` is when a part that is not ok last was; None if it never was.
    """

    ok: bool
    text: str
    since_s: float
    last_ok_s: float | None = None

    def ok_ago_s(self, now_s: float) -> float | None:
        """How long ago the part was last ok: 0 while it is, None if it never was."""
        if self.ok:
            return 0.0
        return None if self.last_ok_s is None else round(now_s - self.last_ok_s, 1)


@dataclass(frozen=True, slots=True)
class Report:
    """All parts at one moment, with ages in seconds."""

    ok: bool
    parts: Mapping[str, Part]
    now_s: float

    def as_json(self) -> dict[str, object]:
        """A short body for an HTTP answer."""
        return {
            "ok": self.ok,
            "parts": {
                name: {
                    "ok": part.ok,
                    "text": part.text,
                    "for_s": round(self.now_s - part.since_s, 1),
                    "ok_ago_s": part.ok_ago_s(self.now_s),
                }
                for name, part in sorted(self.parts.items())
            },
        }


class Vitals:
    """The board of parts. Readiness asks all of them, liveness only that the loop still turns."""

    LOOP_DEAD_AFTER_S = 30.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[str, Part] = {}
        self._beat_s = time.monotonic()

    def set(self, name: str, text: str, *, ok: bool) -> bool:
        """Say how a part is doing; True if that is news."""
        with self._lock:
            part = self._parts.get(name)
            if part is not None and (part.ok, part.text) == (ok, text):
                return False
            now_s = time.monotonic()
            same_state = part is not None and part.ok == ok
            since_s = part.since_s if part and same_state else now_s
            last_ok_s = now_s if part and part.ok else part.last_ok_s if part else None
            self._parts[name] = Part(ok, text, since_s, last_ok_s)
            return True

    def remove(self, name: str) -> None:
        """The part no longer exists."""
        with self._lock:
            self._parts.pop(name, None)

    def beat(self) -> None:
        """The event loop turns."""
        self._beat_s = time.monotonic()

    def readiness(self) -> Report:
        """Ready if every part is."""
        with self._lock:
            parts = dict(self._parts)
        ok = bool(parts) and all(part.ok for part in parts.values())
        return Report(ok, MappingProxyType(parts), time.monotonic())

    def liveness(self) -> Report:
        """Alive if the event loop turned lately; a missing driver or kubelet is no reason to die.

        The parts are shown all the same, for whoever looks.
        """
        report = self.readiness()
        age_s = report.now_s - self._beat_s
        loop = Part(age_s < self.LOOP_DEAD_AFTER_S, f"last turn {age_s:.1f} s ago", self._beat_s)
        return replace(
            report, ok=loop.ok, parts=MappingProxyType({**report.parts, "event-loop": loop})
        )
