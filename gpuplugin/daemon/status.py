"""The status of the daemon's components: what /health and /ready show, from any thread."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


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

    LOOP_DEAD_AFTER_S = 30.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._components: dict[str, Component] = {}
        self._beat_s = time.monotonic()

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

    def beat(self) -> None:
        """The event loop turns."""
        self._beat_s = time.monotonic()

    def readiness(self) -> StatusReport:
        """Ready if every component is ok."""
        with self._lock:
            components = dict(self._components)
        ok = bool(components) and all(one.ok for one in components.values())
        return StatusReport(ok, MappingProxyType(components), time.monotonic())

    def liveness(self) -> StatusReport:
        """Alive if the event loop turned lately; a missing driver or kubelet is no reason to die.

        The components are part of the report all the same.
        """
        report = self.readiness()
        age_s = report.now_s - self._beat_s
        loop = Component(
            age_s < self.LOOP_DEAD_AFTER_S, f"last turn {age_s:.1f} s ago", self._beat_s
        )
        components = {**report.components, "event-loop": loop}
        return replace(report, ok=loop.ok, components=MappingProxyType(components))
