"""Time slicing: one context at a time, round robin, with a slice and a cost of switching.

The rules, which `stepwise` follows slice by slice and `timeslicing` with whole rounds skipped:

- The resident context runs until its work or its slice ends.
- A context whose work ended may submit more at that very moment and goes on in the rest of its
  slice. If it does not, the rest is dropped, and the next context has its turn.
- When a slice ends and nobody waits, the next one begins at once. Else the context goes to the end
  of the queue, and the first of the queue becomes resident after a switch, with a whole slice.
- Work of a context that is not resident joins the end of the queue. Waiting contexts without work
  do not exist: an idle context takes no slice and costs nothing.
- A GPU without work keeps its resident context, which can go on without a switch, in a new slice.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sim.gpu.compute.engine import PPM, ContextId, Ended, Usage
from sim.gpu.compute.parameters import SliceParameters

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(slots=True)
class Work:
    """What a context still has to do, in nanoseconds at the present speed."""

    context: ContextId
    left_ns: int
    occupancy: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of time on the GPU: a context that runs, or (`switching`) is switched to."""

    start_ns: int
    end_ns: int
    context: ContextId
    switching: bool


@dataclass(slots=True)
class SlicingState:
    """The scheduler's state at `now_ns`; decisions that are due at this moment are not made yet.

    `resident` is the context whose state is on the GPU, with its work while it has some;
    `switch_left_ns` is what is left of the switch to it, `slice_left_ns` of its slice.
    """

    now_ns: int = 0
    resident: ContextId | None = None
    resident_occupancy: float = 0.0
    running: Work | None = None
    switch_left_ns: int = 0
    slice_left_ns: int = 0
    queue: deque[Work] = field(default_factory=deque)


class Slicing:
    """State and bookkeeping that both implementations share; `advance` is theirs."""

    def __init__(self, parameters: SliceParameters | None = None) -> None:
        self.parameters = parameters or SliceParameters()
        self.state = SlicingState()
        self.usage = Usage({})
        self.trace: list[Segment] | None = None
        """Every segment from now on, while it is a list; each round is then a step of its own."""
        self._ppm = PPM

    @property
    def now_ns(self) -> int:
        """The moment that was last advanced to."""
        return self.state.now_ns

    @property
    def runnable(self) -> int:
        """How many contexts have work."""
        return len(self.state.queue) + (self.state.running is not None)

    def on_gpu(self, context: ContextId) -> bool:
        """See `Engine.on_gpu`."""
        running = self.state.running
        return running is not None and running.context == context

    def submit(self, context: ContextId, work_ns: int, occupancy: float) -> None:
        """See `Engine.submit`."""
        if work_ns < 1:
            raise ValueError(f"work of {work_ns} ns: at least 1 ns")
        state = self.state
        work = Work(context, self._at_present_speed(work_ns, PPM), occupancy)
        goes_on = state.running is None and state.slice_left_ns > 0 and not state.switch_left_ns
        if context == state.resident and goes_on:
            state.running = work
            state.resident_occupancy = occupancy
            return
        state.queue.append(work)

    def cancel(self, context: ContextId) -> None:
        """See `Engine.cancel`."""
        state = self.state
        state.queue = deque(work for work in state.queue if work.context != context)
        if state.resident == context:
            state.resident = None
            state.resident_occupancy = 0.0
            state.running = None
            state.switch_left_ns = state.slice_left_ns = 0

    def set_speed(self, ppm: int) -> None:
        """See `Engine.set_speed`."""
        before, self._ppm = self._ppm, ppm
        for work in (*self.state.queue, *filter(None, (self.state.running,))):
            work.left_ns = self._at_present_speed(work.left_ns, before)

    def _at_present_speed(self, work_ns: int, ppm: int) -> int:
        """Nanoseconds that take `work_ns` at another speed."""
        return max(1, -(-work_ns * ppm // self._ppm))

    def _decide(self) -> None:
        """Make the decisions that are due now: who is resident, and whether a slice begins."""
        state = self.state
        if state.running is not None and (state.switch_left_ns or state.slice_left_ns):
            return
        if not state.queue:
            # Alone: the next slice begins at once. Without work the rest of a slice is dropped.
            state.slice_left_ns = self.parameters.slice_ns if state.running else 0
            return
        following = state.queue.popleft()
        if state.running is not None:
            state.queue.append(state.running)
        if following.context == state.resident:
            state.switch_left_ns = 0
        else:
            state.switch_left_ns = self.parameters.switch_ns(
                state.resident_occupancy, following.occupancy
            )
        state.resident, state.resident_occupancy = following.context, following.occupancy
        state.running = following
        state.slice_left_ns = self.parameters.slice_ns

    def _run(self, duration_ns: int) -> Sequence[Ended]:
        """Let the resident context switch in or run; it does not change within `duration_ns`."""
        state = self.state
        if self.trace is not None and state.resident is not None and state.running is not None:
            end_ns, switching = state.now_ns + duration_ns, state.switch_left_ns > 0
            self.trace.append(Segment(state.now_ns, end_ns, state.resident, switching))
        state.now_ns += duration_ns
        if state.switch_left_ns:
            state.switch_left_ns -= duration_ns
            self.usage.switching_ns += duration_ns
            return ()
        running = state.running
        if running is None:
            return ()
        state.slice_left_ns -= duration_ns
        running.left_ns -= duration_ns
        self._count(running.context, duration_ns)
        if running.left_ns:
            return ()
        state.running = None
        return (Ended(running.context, state.now_ns),)

    def _count(self, context: ContextId, busy_ns: int) -> None:
        usage = self.usage
        usage.busy_ns[context] = usage.busy_ns.get(context, 0) + busy_ns
        usage.active_ns += busy_ns
