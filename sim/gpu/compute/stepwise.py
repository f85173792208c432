"""Time slicing slice by slice: slow, and so plain that it can be believed. For tests."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from sim.gpu.compute.slicing import Slicing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.gpu.compute.engine import Ended


class StepwiseTimeSlicing(Slicing):
    """`Engine` that follows the rules of `slicing` one step at a time."""

    def advance(self, to_ns: int) -> Sequence[Ended]:
        """See `Engine.advance`."""
        ended: list[Ended] = []
        while self.state.now_ns < to_ns:
            ended.extend(self._step(to_ns))
        return ended

    def next_end_ns(self) -> int | None:
        """See `Engine.next_end_ns`: found by trying."""
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
