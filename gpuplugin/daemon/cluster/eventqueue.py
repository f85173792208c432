"""What is reported to the API server, and Events that wait: bounded, with repetitions counted.

No clock and no I/O: time is an argument. `nodereports` sends them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from gpuplugin.core.nodecondition import GpuReport

CAPACITY = 100
SAME_WITHIN_S = 600.0
"""How long an Event is counted up before a repetition is a new one; so long as kubelet's."""
MAX_EVENT_AGE_S = 3600.0
"""After an hour the API server would have dropped the Event (its --event-ttl)."""

_NAME_LENGTH = 253
_SUFFIX_LENGTH = 20


class ReportFailed(Exception):
    """A report was not accepted: reason and remedy; if `retryable`, retry after `wait_s`."""

    def __init__(self, text: str, *, retryable: bool, wait_s: float = 0.0) -> None:
        super().__init__(text)
        self.retryable = retryable
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class NodeCondition:
    """The condition GPUHealthy as the API has it: `status` is True, False or Unknown.

    `since` is when it came to this status, `seen` when that was last confirmed; both in UTC.
    """

    status: str
    reason: str
    message: str
    since: datetime
    seen: datetime


class TokenBucket:
    """`burst` tokens at first; a new one every `every_s` seconds, up to `burst`."""

    def __init__(self, burst: int, every_s: float) -> None:
        self._ahead_s = (burst - 1) * every_s
        self._every_s = every_s
        self._paid_until_s = float("-inf")

    def take(self, now_s: float) -> None:
        self._paid_until_s = max(self._paid_until_s, now_s) + self._every_s

    def due_s(self, now_s: float) -> float:
        """When there is a token: `now_s`, or later."""
        return max(now_s, self._paid_until_s - self._ahead_s)


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """An Event to be sent: seen `count` times from `first` to `last`; `type` Normal or Warning.

    `known` is true if the API server has it already, with a smaller count.
    """

    name: str
    reason: str
    type: str
    message: str
    count: int
    first: datetime
    last: datetime
    known: bool


_Key = tuple[str, str]


@dataclass(slots=True)
class _Series:
    event: NodeEvent
    first_s: float
    last_s: float


class EventQueue:
    """Events of one node, the oldest first. `node` begins their names."""

    def __init__(self, node: str, capacity: int = CAPACITY) -> None:
        self._node = node[: _NAME_LENGTH - _SUFFIX_LENGTH].rstrip("-.")
        self._capacity = capacity
        self._series: dict[_Key, _Series] = {}
        self._waiting: dict[_Key, _Series] = {}
        self._made = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, report: GpuReport, now_s: float, now: datetime) -> int:
        """Let an Event wait, or count up the same one; returns how many others were dropped."""
        for key, one in list(self._series.items()):
            if key not in self._waiting and now_s - one.first_s >= SAME_WITHIN_S:
                del self._series[key]
        key = (report.event_reason, report.event_message)
        series = self._series.get(key)
        if series is None:
            event = NodeEvent(
                self._new_name(now), key[0], report.event_type, key[1], 0, now, now, known=False
            )
            series = self._series[key] = _Series(event, now_s, now_s)
        series.event = replace(series.event, count=series.event.count + 1, last=now)
        series.last_s = now_s
        self._waiting.setdefault(key, series)
        dropped = len(self._waiting) - self._capacity
        if dropped > 0:
            self._drop(next(iter(self._waiting)))
        return max(dropped, 0)

    def drop_stale(self, now_s: float) -> int:
        """Drop Events older than `MAX_EVENT_AGE_S`; returns how many."""
        stale = [key for key, one in self._waiting.items() if now_s - one.last_s > MAX_EVENT_AGE_S]
        for key in stale:
            self._drop(key)
        return len(stale)

    def next(self) -> NodeEvent | None:
        """The Event to send next; it waits on until it is `settled`."""
        return next((series.event for series in self._waiting.values()), None)

    def settled(self, event: NodeEvent, *, sent: bool) -> None:
        """An Event was accepted, or (not `sent`) never will be; what came meanwhile still waits."""
        key = (event.reason, event.message)
        series = self._series.get(key)
        if series is None or series.event.name != event.name:
            return
        series.event = replace(series.event, known=series.event.known or sent)
        if not sent:
            self._drop(key)
        elif series.event.count == event.count:
            self._waiting.pop(key, None)

    def _drop(self, key: _Key) -> None:
        series = self._waiting.pop(key, None)
        if series is not None and not series.event.known:
            del self._series[key]

    def _new_name(self, now: datetime) -> str:
        """Unique, as kubelet makes them: the node and a time, in nanoseconds."""
        self._made += 1
        number = int(now.timestamp() * 1e6) * 1000 + self._made % 1000
        return f"{self._node}.{number:x}"
