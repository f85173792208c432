"""What came about in the demo: calls, lists, checks. Written from several threads, then shown."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.kubelet import CallRecord, KubeletEvent

RECENT = 7


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that had to be so."""

    passed: bool
    text: str


class Facts:
    """The record of the demo."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started_s = time.monotonic()
        self._recent: deque[str] = deque(maxlen=RECENT)
        self._calls: list[CallRecord] = []
        self._lists: list[float] = []
        self._checks: list[Check] = []

    @property
    def elapsed_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._started_s

    def happened(self, fact: KubeletEvent) -> None:
        """A listener for the kubelet stand-in."""
        with self._lock:
            if fact.kind == "list":
                self._lists.append(time.monotonic())
            if fact.call is not None:
                self._calls.append(fact.call)
            self._recent.append(f"{self.elapsed_s:5.1f} s  {_line(fact)}")

    def check(self, passed: bool, text: str) -> None:
        """Note what was expected and whether it was so."""
        with self._lock:
            self._checks.append(Check(passed, text))

    @property
    def recent(self) -> list[str]:
        """The last facts, oldest first."""
        with self._lock:
            return list(self._recent)

    @property
    def checks(self) -> list[Check]:
        """All checks so far."""
        with self._lock:
            return list(self._checks)

    @property
    def all_passed(self) -> bool:
        """True if there were checks and none failed."""
        checks = self.checks
        return bool(checks) and all(check.passed for check in checks)

    def lists_since(self, moment_s: float) -> list[float]:
        """Times (monotonic) at which lists arrived after a moment."""
        with self._lock:
            return [at_s for at_s in self._lists if at_s >= moment_s]

    def latency_ms(self, method: str) -> tuple[int, float, float] | None:
        """(calls, median, maximum) of a method as the kubelet saw it; None without calls."""
        with self._lock:
            durations = [call.duration_s * 1e3 for call in self._calls if call.method == method]
        if not durations:
            return None
        return len(durations), statistics.median(durations), max(durations)

    def summary(self) -> list[str]:
        """Closing lines: what was checked, and how long calls took."""
        lines = ["", "What was seen:"]
        lines += [f"  {'ok ' if check.passed else 'NO '} {check.text}" for check in self.checks]
        for method in ("GetPreferredAllocation", "Allocate"):
            if latency := self.latency_ms(method):
                count, median, longest = latency
                lines.append(
                    f"{method}: {count} calls, median {median:.2f} ms, longest {longest:.2f} ms, "
                    "as the kubelet sees it"
                )
        return lines


def _line(fact: KubeletEvent) -> str:
    if fact.call is None:
        return f"{fact.kind:12} {fact.text}"
    outcome = "refused" if fact.call.error else "ok"
    return f"{fact.call.method:22} {fact.call.duration_s * 1e3:6.2f} ms  {outcome}"
