"""Closed loops: calls one after the other, or many connections and streams kept busy at once."""

from __future__ import annotations

import selectors
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.client import Connection, Method


@dataclass(frozen=True, slots=True)
class Busy:
    """What a loop saw: the latency of each call in us, and how long all of them took in s."""

    latencies_us: tuple[float, ...]
    took_s: float

    @property
    def calls_per_s(self) -> float:
        """Throughput."""
        return len(self.latencies_us) / self.took_s


def one_by_one(call: Callable[[], object], calls: int) -> list[float]:
    """Microseconds of each of so many calls."""
    clock = time.perf_counter_ns
    found = []
    for _ in range(calls):
        started_ns = clock()
        call()
        found.append((clock() - started_ns) / 1e3)
    return found


def kept_busy(
    connections: Sequence[Connection], method: Method, payload: bytes, streams: int, calls: int
) -> Busy:
    """Make `calls` calls in all, with so many `streams` in flight on each connection.

    Raises:
        CallError: a call was answered with an error status.
        ConnectionLost: a connection broke.
    """
    clock = time.perf_counter_ns
    latencies_us: list[float] = []
    started: dict[tuple[Connection, int], int] = {}
    left = calls
    with selectors.DefaultSelector() as selector:
        began_ns = clock()
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ, connection)
            for _ in range(min(streams, left)):
                started[connection, connection.begin(method, payload)] = clock()
                left -= 1
        while started:
            for key, _ in selector.select():
                connection = key.data
                for done in connection.receive():
                    if done.error is not None:
                        raise done.error
                    now_ns = clock()
                    begun_ns = started.pop((connection, done.stream_id))
                    latencies_us.append((now_ns - begun_ns) / 1e3)
                    if left:
                        started[connection, connection.begin(method, payload)] = clock()
                        left -= 1
        took_s = (clock() - began_ns) / 1e9
    return Busy(tuple(latencies_us), took_s)
