"""Spatial sharing as MPS does it: kernels of several processes run at the same time.

Each context asks for a share of the SMs, its occupancy. While the shares fit, everybody runs at
full speed; where they do not, all are slowed down alike. That memory bandwidth and caches are
shared, too, is not modelled.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sim.gpu.compute.engine import PPM, ContextId, Ended, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

SMALLEST_SHARE = 0.01
"""A kernel keeps at least so much of the GPU busy; it also keeps sums away from zero."""


_ROUNDING_NS = 1e-3
"""Work that takes less than this is none: what is left of sums of floating-point numbers."""


class Mps:
    """`Engine` without slices and switches; work is fluid, and ends are rounded up to 1 ns."""

    def __init__(self) -> None:
        self.usage = Usage({})
        self._now_ns = 0
        self._left_ns: dict[ContextId, float] = {}
        self._shares: dict[ContextId, float] = {}
        self._speed = 1.0

    @property
    def now_ns(self) -> int:
        """The moment that was last advanced to."""
        return self._now_ns

    @property
    def runnable(self) -> int:
        """How many contexts have work."""
        return len(self._left_ns)

    def on_gpu(self, context: ContextId) -> bool:
        """See `Engine.on_gpu`."""
        return context in self._left_ns

    def submit(self, context: ContextId, work_ns: int, occupancy: float) -> None:
        """See `Engine.submit`."""
        self._left_ns[context] = float(work_ns)
        self._shares[context] = max(SMALLEST_SHARE, occupancy)

    def cancel(self, context: ContextId) -> None:
        """See `Engine.cancel`."""
        self._left_ns.pop(context, None)
        self._shares.pop(context, None)

    def advance(self, to_ns: int) -> Sequence[Ended]:
        """See `Engine.advance`."""
        ended: list[Ended] = []
        while self._now_ns < to_ns:
            next_end_ns = self.next_end_ns()
            if next_end_ns is None:
                self._now_ns = to_ns
                break
            ended.extend(self._run(min(next_end_ns, to_ns) - self._now_ns))
        return ended

    def next_end_ns(self) -> int | None:
        """See `Engine.next_end_ns`."""
        if not self._left_ns:
            return None
        return self._now_ns + max(
            1, math.ceil(min(self._left_ns.values()) / self._rate - _ROUNDING_NS)
        )

    def set_speed(self, ppm: int) -> None:
        """See `Engine.set_speed`."""
        self._speed = ppm / PPM

    @property
    def _rate(self) -> float:
        """Work that is done for each context in a nanosecond."""
        return self._speed * min(1.0, 1.0 / sum(self._shares.values()))

    def _run(self, duration_ns: int) -> list[Ended]:
        rate = self._rate
        self._now_ns += duration_ns
        self.usage.active_ns += duration_ns
        ended: list[Ended] = []
        for context in self._left_ns:
            self._left_ns[context] -= duration_ns * rate
            busy_ns = self.usage.busy_ns
            busy_ns[context] = busy_ns.get(context, 0) + duration_ns
            if self._left_ns[context] / rate <= _ROUNDING_NS:
                ended.append(Ended(context, self._now_ns))
        for one in ended:
            self.cancel(one.context)
        return ended
