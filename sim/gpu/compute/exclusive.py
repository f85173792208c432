"""One context at a time, first come first served, each until its work is done: no sharing."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from sim.gpu.compute.engine import PPM, ContextId, Ended, Usage
from sim.gpu.compute.slicing import Work

if TYPE_CHECKING:
    from collections.abc import Sequence


class Exclusive:
    """`Engine` without slices: the next context begins when the one before it is done.

    A change of context costs nothing: what makes it slow, starting processes, is not modelled.
    """

    def __init__(self) -> None:
        self.usage = Usage({})
        self._now_ns = 0
        self._queue: deque[Work] = deque()
        self._ppm = PPM

    @property
    def now_ns(self) -> int:
        """The moment that was last advanced to."""
        return self._now_ns

    @property
    def runnable(self) -> int:
        """How many contexts have work."""
        return len(self._queue)

    def on_gpu(self, context: ContextId) -> bool:
        """See `Engine.on_gpu`."""
        return bool(self._queue) and self._queue[0].context == context

    def submit(self, context: ContextId, work_ns: int, occupancy: float) -> None:
        """See `Engine.submit`; occupancy makes no difference."""
        self._queue.append(Work(context, max(1, -(-work_ns * PPM // self._ppm)), occupancy))

    def cancel(self, context: ContextId) -> None:
        """See `Engine.cancel`."""
        self._queue = deque(work for work in self._queue if work.context != context)

    def advance(self, to_ns: int) -> Sequence[Ended]:
        """See `Engine.advance`."""
        ended: list[Ended] = []
        while self._queue and self._now_ns < to_ns:
            work = self._queue[0]
            step_ns = min(work.left_ns, to_ns - self._now_ns)
            self._now_ns += step_ns
            work.left_ns -= step_ns
            busy_ns = self.usage.busy_ns
            busy_ns[work.context] = busy_ns.get(work.context, 0) + step_ns
            self.usage.active_ns += step_ns
            if not work.left_ns:
                ended.append(Ended(work.context, self._now_ns))
                self._queue.popleft()
        self._now_ns = to_ns
        return ended

    def next_end_ns(self) -> int | None:
        """See `Engine.next_end_ns`."""
        return self._now_ns + self._queue[0].left_ns if self._queue else None

    def set_speed(self, ppm: int) -> None:
        """See `Engine.set_speed`."""
        before, self._ppm = self._ppm, ppm
        for work in self._queue:
            work.left_ns = max(1, -(-work.left_ns * before // ppm))
