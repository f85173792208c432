"""Time slicing: contexts take turns, each for a slice, with a switch between two of them."""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sim.gpu.scheduler import PPM, ContextId, Ended, SliceParameters, Usage

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
        return self.state.now_ns

    @property
    def runnable(self) -> int:
        return len(self.state.queue) + (self.state.running is not None)

    def on_gpu(self, context: ContextId) -> bool:
        running = self.state.running
        return running is not None and running.context == context

    def submit(
        self, context: ContextId, work_ns: int, occupancy: float, mps_share: float | None = None
    ) -> None:
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
        state = self.state
        state.queue = deque(work for work in state.queue if work.context != context)
        if state.resident == context:
            state.resident = None
            state.resident_occupancy = 0.0
            state.running = None
            state.switch_left_ns = state.slice_left_ns = 0

    def set_speed(self, ppm: int) -> None:
        before, self._ppm = self._ppm, ppm
        for work in (*self.state.queue, *filter(None, (self.state.running,))):
            work.left_ns = self._at_present_speed(work.left_ns, before)

    def _at_present_speed(self, work_ns: int, ppm: int) -> int:
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


class StepwiseTimeSlicing(Slicing):
    """`Scheduler` that takes turns one step at a time."""

    def advance(self, to_ns: int) -> Sequence[Ended]:
        ended: list[Ended] = []
        while self.state.now_ns < to_ns:
            ended.extend(self._step(to_ns))
        return ended

    def next_end_ns(self) -> int | None:
        if not self.runnable:
            return None
        trial = deepcopy(self)
        while True:
            for ended in trial.advance(trial.now_ns + self.parameters.slice_ns):
                return ended.at_ns

    def _step(self, to_ns: int) -> Sequence[Ended]:
        self._decide()
        state = self.state
        left_ns = to_ns - state.now_ns
        if state.switch_left_ns:
            return self._run(min(left_ns, state.switch_left_ns))
        if state.running is None:
            return self._run(left_ns)
        return self._run(min(left_ns, state.slice_left_ns, state.running.left_ns))


class TimeSlicing(Slicing):
    """`Scheduler` with the same results in fewer steps: it skips whole rounds."""

    def advance(self, to_ns: int) -> Sequence[Ended]:
        ended: list[Ended] = []
        state = self.state
        while state.now_ns < to_ns:
            self._decide()
            if state.switch_left_ns:
                self._run(min(to_ns - state.now_ns, state.switch_left_ns))
                continue
            running = state.running
            if running is None:
                state.now_ns = to_ns
                break
            left_ns = to_ns - state.now_ns
            if not state.queue:
                ended.extend(self._run_alone(min(left_ns, running.left_ns)))
                continue
            if state.slice_left_ns == self.parameters.slice_ns and self.trace is None:
                left_ns -= self._skip_rounds(running, left_ns)
            ended.extend(self._run(min(left_ns, state.slice_left_ns, running.left_ns)))
        return ended

    def next_end_ns(self) -> int | None:
        state = self.state
        running, now_ns = state.running, state.now_ns
        if running is None and not state.queue:
            return None
        if not state.queue and running is not None:
            return now_ns + state.switch_left_ns + running.left_ns
        slice_ns = self.parameters.slice_ns
        turns: list[tuple[int, Work]] = []
        at_ns = now_ns
        previous = state.resident_occupancy
        resident = state.resident
        soonest: int | None = None
        later: Work | None = None
        if running is not None:
            at_ns += state.switch_left_ns
            if running.left_ns <= state.slice_left_ns:
                # Nobody else has the GPU before.
                return at_ns + running.left_ns
            later = running
            at_ns += state.slice_left_ns
        for work in state.queue:
            if work.context != resident:
                at_ns += self.parameters.switch_ns(previous, work.occupancy)
            if work.left_ns <= slice_ns:
                # Those before it have turns to come, and those behind it begin after it.
                return at_ns + work.left_ns
            turns.append((at_ns, work))
            at_ns += slice_ns
            previous, resident = work.occupancy, work.context
        if later is not None:
            at_ns += self.parameters.switch_ns(previous, later.occupancy)
            turns.append((at_ns, later))
            at_ns += slice_ns
        round_ns = self._round_ns([work for _, work in turns])
        for starts_ns, work in turns:
            left_ns = work.left_ns - (state.slice_left_ns if work is later else 0)
            whole = (left_ns - 1) // slice_ns
            ends_ns = starts_ns + whole * round_ns + left_ns - whole * slice_ns
            soonest = ends_ns if soonest is None else min(soonest, ends_ns)
        return soonest

    def _run_alone(self, duration_ns: int) -> Sequence[Ended]:
        """No other context waits: slices follow each other without a gap."""
        state, slice_ns = self.state, self.parameters.slice_ns
        past_ns = duration_ns - state.slice_left_ns
        if past_ns > 0:
            # As if the slices had been counted down; `_run` takes the whole duration off again.
            state.slice_left_ns = duration_ns + (-past_ns % slice_ns)
        return self._run(duration_ns)

    def _skip_rounds(self, running: Work, left_ns: int) -> int:
        """Skip whole rounds in which no work ends, at the begin of a slice; returns their time.

        They take less than `left_ns`. Where switches are free, the last slice of a round ends at
        the moment the next one begins; at the end of `left_ns` that turn is due, but not decided.
        """
        state, slice_ns = self.state, self.parameters.slice_ns
        if running.left_ns <= slice_ns or left_ns <= (len(state.queue) + 1) * slice_ns:
            # The usual case, found without iterating over all: there is no such round.
            return 0
        ring = (running, *state.queue)
        round_ns = self._round_ns(ring)
        rounds = min((left_ns - 1) // round_ns, *((work.left_ns - 1) // slice_ns for work in ring))
        if rounds <= 0:
            return 0
        for work in ring:
            work.left_ns -= rounds * slice_ns
            self._count(work.context, rounds * slice_ns)
        self.usage.switching_ns += rounds * (round_ns - len(ring) * slice_ns)
        state.now_ns += rounds * round_ns
        return rounds * round_ns

    def _round_ns(self, ring: Sequence[Work]) -> int:
        slice_ns = self.parameters.slice_ns
        if len(ring) == 1:
            return slice_ns
        switches = sum(
            self.parameters.switch_ns(ring[index - 1].occupancy, work.occupancy)
            for index, work in enumerate(ring)
        )
        return len(ring) * slice_ns + switches
