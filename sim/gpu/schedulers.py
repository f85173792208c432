"""The schedulers without slices: exclusive use, and spatial sharing as MPS does it.

MPS: kernels of all contexts run side by side, and each context slows the others down by its share.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
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

    def submit(
        self, context: ContextId, work_ns: int, occupancy: float, mps_share: float | None = None
    ) -> None:
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


MPS_SHARE_AT_FULL_OCCUPANCY = 0.59
"""The MPS share of a workload of which none was measured, times its occupancy.

It is the middle of the two that were published for kernels that fill the GPU: 0.43 (inference of
YOLOS on an A100 80 GB) and 0.75 (encoders on a GB10).
"""


def usual_mps_share(occupancy: float) -> float:
    return MPS_SHARE_AT_FULL_OCCUPANCY * occupancy


_ROUNDING_NS = 1e-3
"""Work that takes less than this is none: what is left of sums of floating-point numbers."""


@dataclass(slots=True)
class _Fluid:
    left_ns: float
    mps_share: float


class Mps:
    """`Scheduler` without slices and switches; work is fluid, and ends are rounded up to 1 ns.

    Each context with work takes 1 + the sum of the MPS shares of the *others* with work times as
    long as alone. So N equal ones take 1 + share * (N - 1) times as long, and their throughput
    together tends to 1 / share: what the SMs, caches and the memory's bandwidth allow, whichever
    of them is the limit.
    """

    def __init__(self) -> None:
        self.usage = Usage({})
        self.now_ns = 0
        self._work: dict[ContextId, _Fluid] = {}
        self._speed = 1.0

    def on_gpu(self, context: ContextId) -> bool:
        return context in self._work

    def submit(
        self, context: ContextId, work_ns: int, occupancy: float, mps_share: float | None = None
    ) -> None:
        share = usual_mps_share(occupancy) if mps_share is None else mps_share
        self._work[context] = _Fluid(float(work_ns), share)

    def cancel(self, context: ContextId) -> None:
        self._work.pop(context, None)

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
        if not self._work:
            return None
        shares = self._shares
        soonest_ns = min(one.left_ns / self._rate(one, shares) for one in self._work.values())
        return self.now_ns + max(1, math.ceil(soonest_ns - _ROUNDING_NS))

    def set_speed(self, ppm: int) -> None:
        self._speed = ppm / PPM

    @property
    def _shares(self) -> float:
        return math.fsum(one.mps_share for one in self._work.values())

    def _rate(self, one: _Fluid, shares: float) -> float:
        return self._speed / (1.0 + max(0.0, shares - one.mps_share))

    def _run(self, duration_ns: int) -> list[Ended]:
        shares = self._shares
        self.now_ns += duration_ns
        self.usage.active_ns += duration_ns
        ended: list[Ended] = []
        for context, one in self._work.items():
            rate = self._rate(one, shares)
            one.left_ns -= duration_ns * rate
            busy_ns = self.usage.busy_ns
            busy_ns[context] = busy_ns.get(context, 0) + duration_ns
            if one.left_ns / rate <= _ROUNDING_NS:
                ended.append(Ended(context, self.now_ns))
        for end in ended:
            self.cancel(end.context)
        return ended
