"""What a compute scheduler is: contexts submit work, time is advanced from outside.

All times are integer nanoseconds of model time. A scheduler is asked when the next work will end
(`next_end_ns`), is advanced to a moment (`advance`), and then takes what is submitted at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NewType, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

ContextId = NewType("ContextId", int)
"""A context of a GPU: the address space and channels of one process."""

PPM = 1_000_000
"""Speed 1, in parts per million."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The work of a context ended at `at_ns`."""

    context: ContextId
    at_ns: int


@dataclass(slots=True)
class Usage:
    """Where the time of a scheduler went, in nanoseconds; what is left of it was idle.

    `busy_ns` is time in which work was done, by context; with several at a time the sum may pass
    the time that went by. `switching_ns` is time lost to context switches.
    """

    busy_ns: dict[ContextId, int]
    switching_ns: int = 0
    active_ns: int = 0
    """Time in which at least one context did work."""


class Engine(Protocol):
    """A scheduler. A context has at most one piece of work at a time."""

    usage: Usage

    @property
    def now_ns(self) -> int:
        """The moment that was last advanced to."""
        ...

    @property
    def runnable(self) -> int:
        """How many contexts have work."""
        ...

    def on_gpu(self, context: ContextId) -> bool:
        """True if the context is being worked for at this very moment."""
        ...

    def submit(self, context: ContextId, work_ns: int, occupancy: float) -> None:
        """Give a context work now: `work_ns` (at least 1) alone on the GPU at full speed.

        `occupancy` (0 to 1) is how much of the GPU's registers, shared memory or SMs it fills.
        """
        ...

    def cancel(self, context: ContextId) -> None:
        """Take the context off the GPU now, with its work if it has some."""
        ...

    def advance(self, to_ns: int) -> Sequence[Ended]:
        """Let time pass up to `to_ns`; the works that ended, in order.

        What is submitted next counts as submitted at that moment, before anything is decided in
        it: a context whose work just ended may go on in the rest of its slice.
        """
        ...

    def next_end_ns(self) -> int | None:
        """When the next work ends if nothing else happens; None if there is no work."""
        ...

    def set_speed(self, ppm: int) -> None:
        """Run at `ppm` millionths of full speed from now on (clocks that are throttled)."""
        ...
