"""Arithmetic of a report: exact percentiles, Jain's index. Plain lists, no other library."""

from __future__ import annotations

import math
from operator import sub, truediv
from typing import TYPE_CHECKING

from sim.gpu.compute.parameters import NS_PER_MS
from sim.study.report.schema import Spread

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Sequence

CURVE = (0.0, *(percent / 100 for percent in range(1, 100)), 0.995, 0.999, 0.9999, 1.0)
"""Shares of requests at which a curve has its points; the tail is what people ask for."""


class Requests:
    """Requests of one or several tenants; times in nanoseconds, sorted once.

    Args:
        parts: latencies and works alone of each tenant, as long as each other.
    """

    def __init__(self, parts: Iterable[tuple[array[int], array[int]]]) -> None:
        self._latency_ns: list[int] = []
        self._work_ns: list[int] = []
        for latency_ns, work_ns in parts:
            self._latency_ns.extend(latency_ns)
            self._work_ns.extend(work_ns)
        latency, work = self._latency_ns, self._work_ns
        self.count = len(latency)
        self.latency_sum_ns = sum(latency)
        self.work_sum_ns = sum(work)
        self._ratios = math.fsum(map(truediv, latency, work))
        waits = list(map(sub, latency, work))
        work.sort()
        latency.sort()
        if self.count and work[0] == work[-1]:
            waits = [one - work[0] for one in latency]  # in order already
        else:
            waits.sort()
        self._waits_ns = waits

    @property
    def slowdown(self) -> float | None:
        """Mean of latency over work alone."""
        return self._ratios / self.count if self.count else None

    @property
    def speed(self) -> float | None:
        """All work alone over all latency: throughput of one who waits, against alone."""
        return self.work_sum_ns / self.latency_sum_ns if self.latency_sum_ns else None

    @property
    def alone_ms(self) -> float | None:
        """The median of the work alone, in milliseconds."""
        return percentile(self._work_ns, 0.5) / NS_PER_MS if self.count else None

    @property
    def latency_ms(self) -> Spread | None:
        """Latencies in milliseconds."""
        return _spread(self._latency_ns, self.latency_sum_ns)

    @property
    def wait_ms(self) -> Spread | None:
        """Latencies without the work alone, in milliseconds."""
        return _spread(self._waits_ns, self.latency_sum_ns - self.work_sum_ns)

    @property
    def latency_curve(self) -> list[tuple[float, float]]:
        """(share, milliseconds) at each share of `CURVE`."""
        if not self.count:
            return []
        return [(share, percentile(self._latency_ns, share) / NS_PER_MS) for share in CURVE]


def percentile(ordered: Sequence[int], share: float) -> int:
    """The smallest of sorted values that `share` (0 to 1) of them do not exceed: nearest rank."""
    # Without the small amount, 0.07 * 100 = 7.000000000000001 would be rank 8.
    rank = math.ceil(share * len(ordered) - 1e-9)
    return ordered[max(1, rank) - 1]


def jain(values: Sequence[float]) -> float | None:
    """Jain's fairness index: (sum x)^2 / (n * sum x^2), from 1/n (one has it all) to 1 (alike).

    Here x is a tenant's throughput relative to alone (`Requests.speed`). None where there is
    nobody to compare with, or nobody has anything.
    """
    squares = math.fsum(value * value for value in values)
    if len(values) < 2 or not squares:
        return None
    return math.fsum(values) ** 2 / (len(values) * squares)


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are there."""
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there else None


def share_of(part: float, whole: float) -> float | None:
    """A quotient, None of nothing."""
    return part / whole if whole > 0 else None


def _spread(ordered_ns: Sequence[int], sum_ns: int) -> Spread | None:
    if not ordered_ns:
        return None
    p50, p95, p99 = (percentile(ordered_ns, share) / NS_PER_MS for share in (0.5, 0.95, 0.99))
    return Spread(
        mean=sum_ns / len(ordered_ns) / NS_PER_MS,
        p50=p50,
        p95=p95,
        p99=p99,
        max=ordered_ns[-1] / NS_PER_MS,
    )
