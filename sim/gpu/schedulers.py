"""The schedulers without slices: exclusive use, and spatial sharing as MPS does it.

MPS: each context asks for a share of the SMs, its occupancy. While the shares fit, all run at full
speed; where they do not, all are slowed down alike. Memory bandwidth and caches are not modelled.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from sim.gpu.scheduler import PPM, ContextId, Ended, Usage
from sim.gpu.timeslicing import Work

if TYPE_CHECKING:
    from collections.abc import Sequence


class Exclusive:
    """`Scheduler` without slices: the next context begins when the one before it is done.

    A change of context costs nothing: what makes it slow, starting processes, is not modelled.
    """

    def __init__(self) -> None:
        self.usage = Usage({})
        self.now_ns = 0
        self._queue: deque[Work] = deque()
        self._ppm = PPM

    def on_gpu(self, context: ContextId) -> bool:
        return bool(self._queue) and self._queue[0].context == context

    def submit(self, context: ContextId, work_ns: int, occupancy: float) -> None:
        self._queue.append(Work(context, max(1, -(-work_ns * PPM // self._ppm)), occupancy))

    def cancel(self, context: ContextId) -> None:
        self._queue = deque(work for work in self._queue if work.context != context)

    def advance(self, to_ns: int) -> Sequence[Ended]:
        ended: list[Ended] = []
        while self._queue and self.now_ns < to_ns:
            work = self._queue[0]
            step_ns = min(work.left_ns, to_ns - self.now_ns)
            self.now_ns += step_ns
            work.left_ns -= step_ns
            busy_ns = self.usage.busy_ns
            busy_ns[work.context] = busy_ns.get(work.context, 0) + step_ns
            self.usage.active_ns += step_ns
            if not work.left_ns:
                ended.append(Ended(work.context, self.now_ns))
                self._queue.popleft()
        self.now_ns = to_ns
        return ended

    def next_end_ns(self) -> int | None:
        return self.now_ns + self._queue[0].left_ns if self._queue else None

    def set_speed(self, ppm: int) -> None:
        before, self._ppm = self._ppm, ppm
        for work in self._queue:
            work.left_ns = max(1, -(-work.left_ns * before // ppm))


SMALLEST_SHARE = 0.01
"""A kernel keeps at least so much of the GPU busy; it also keeps sums away from zero."""


_ROUNDING_NS = 1e-3
"""Work that takes less than this is none: what is left of sums of floating-point numbers."""


class Mps:
    """`Scheduler` without slices and switches; work is fluid, and ends are rounded up to 1 ns."""

    def __init__(self) -> None:
        self.usage = Usage({})
        self.now_ns = 0
        self._left_ns: dict[ContextId, float] = {}
        self._shares: dict[ContextId, float] = {}
        self._speed = 1.0

    def on_gpu(self, context: ContextId) -> bool:
        return context in self._left_ns

    def submit(self, context: ContextId, work_ns: int, occupancy: float) -> None:
        self._left_ns[context] = float(work_ns)
        self._shares[context] = max(SMALLEST_SHARE, occupancy)

    def cancel(self, context: ContextId) -> None:
        self._left_ns.pop(context, None)
        self._shares.pop(context, None)

    def advance(self, to_ns: int) -> Sequence[Ended]:
        ended: list[Ended] = []
        while self.now_ns < to_ns:
            next_end_ns = self.next_end_ns()
            if next_end_ns is None:
                self.now_ns = to_ns
                break
            ended.extend(self._run(min(next_end_ns, to_ns) - self.now_ns))
        return ended

    def next_end_ns(self) -> int | None:
        if not self._left_ns:
            return None
        return self.now_ns + max(
            1, math.ceil(min(self._left_ns.values()) / self._rate - _ROUNDING_NS)
        )

    def set_speed(self, ppm: int) -> None:
        self._speed = ppm / PPM

    @property
    def _rate(self) -> float:
        return self._speed * min(1.0, 1.0 / sum(self._shares.values()))

    def _run(self, duration_ns: int) -> list[Ended]:
        rate = self._rate
        self.now_ns += duration_ns
        self.usage.active_ns += duration_ns
        ended: list[Ended] = []
        for context in self._left_ns:
            self._left_ns[context] -= duration_ns * rate
            busy_ns = self.usage.busy_ns
            busy_ns[context] = busy_ns.get(context, 0) + duration_ns
            if self._left_ns[context] / rate <= _ROUNDING_NS:
                ended.append(Ended(context, self.now_ns))
        for one in ended:
            self.cancel(one.context)
        return ended
