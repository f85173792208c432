"""Time slicing with whole rounds skipped: the cost grows with works that end, not with slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.gpu.compute.slicing import Slicing, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.gpu.compute.engine import Ended


class TimeSlicing(Slicing):
    """`Engine` that follows the rules of `slicing`, exactly."""

    def advance(self, to_ns: int) -> Sequence[Ended]:
        """See `Engine.advance`."""
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
        """See `Engine.next_end_ns`: from the position of each context in the round."""
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
        """Nobody waits: slices follow each other without a gap."""
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
            # The usual case, seen without a look at everybody: there is no such round.
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
        """The time of one turn of each, with the switches between them."""
        slice_ns = self.parameters.slice_ns
        if len(ring) == 1:
            return slice_ns
        switches = sum(
            self.parameters.switch_ns(ring[index - 1].occupancy, work.occupancy)
            for index, work in enumerate(ring)
        )
        return len(ring) * slice_ns + switches
