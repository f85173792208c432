"""The status of the daemon's components: what /health and /ready show, from any thread."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


_LOOP = "event-loop"


@dataclass(frozen=True, slots=True)
class Component:
    """One component: `ok` and a text; `ok` is unchanged since `since_s` (monotonic).

    `last_ok_s` is when a component that is not ok last was; None if it never was.
    """

    ok: bool
    text: str
    since_s: float
    last_ok_s: float | None = None

    def ok_ago_s(self, now_s: float) -> float | None:
        """Seconds since the component was last ok: 0 while it is, None if it never was."""
        if self.ok:
            return 0.0
        return None if self.last_ok_s is None else round(now_s - self.last_ok_s, 1)


@dataclass(frozen=True, slots=True)
class StatusReport:
    ok: bool
    components: Mapping[str, Component]
    now_s: float

    def as_json(self) -> dict[str, object]:
        return {
            "ok": self.ok,
            "parts": {
                name: {
                    "ok": component.ok,
                    "text": component.text,
                    "for_s": round(self.now_s - component.since_s, 1),
                    "ok_ago_s": component.ok_ago_s(self.now_s),
                }
                for name, component in sorted(self.components.items())
            },
        }


class StatusBoard:
    """The status of each component: readiness of all, liveness of the event loop."""

    LOOP_LATE_AFTER_S = 10.0
    """An event loop that did not turn for so long is not ready: what it shows is old."""
    LOOP_DEAD_AFTER_S = 30.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._components: dict[str, Component] = {}
        self._beat_s = time.monotonic()
        self._tasks_alive = True

    def set(self, name: str, text: str, *, ok: bool) -> bool:
        """Set a component's status; True if it is another than before."""
        with self._lock:
            before = self._components.get(name)
            if before is not None and (before.ok, before.text) == (ok, text):
                return False
            now_s = time.monotonic()
            since_s = before.since_s if before is not None and before.ok == ok else now_s
            last_ok_s = None if before is None else now_s if before.ok else before.last_ok_s
            self._components[name] = Component(ok, text, since_s, last_ok_s)
            return True

    def remove(self, name: str) -> None:
        with self._lock:
            self._components.pop(name, None)

    def beat(self, *, alive: bool = True) -> None:
        """The event loop turns; `alive` if every task that must run does."""
        self._beat_s = time.monotonic()
        self._tasks_alive = alive

    def readiness(self) -> StatusReport:
        """Ready if every component is ok; an event loop that is late is one that is not."""
        components, loop, now_s = self._now(self.LOOP_LATE_AFTER_S)
        ok = bool(components) and loop.ok and all(one.ok for one in components.values())
        if not loop.ok:
            components[_LOOP] = loop
        return StatusReport(ok, MappingProxyType(components), now_s)

    def liveness(self) -> StatusReport:
        """Alive if the event loop turned lately, and no task is dead.

        A missing driver or kubelet is no reason to die; the components are part of the report
        all the same.
        """
        components, loop, now_s = self._now(self.LOOP_DEAD_AFTER_S)
        components[_LOOP] = loop
        ok = loop.ok and self._tasks_alive
        return StatusReport(ok, MappingProxyType(components), now_s)

    def _now(self, late_after_s: float) -> tuple[dict[str, Component], Component, float]:
        """The components, the event loop as one, and the time that they are of."""
        with self._lock:
            components = dict(self._components)
        now_s = time.monotonic()
        age_s = now_s - self._beat_s
        loop = Component(age_s < late_after_s, f"last turn {age_s:.1f} s ago", self._beat_s)
        return components, loop, now_s
