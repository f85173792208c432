"""What a compute scheduler is, its parameters, and its place on a simpy clock.

Contexts submit work, time is advanced from outside: a scheduler names the end of the next work
(`next_end_ns`), is advanced to a moment (`advance`), and then takes what is submitted at it. All
times are integer nanoseconds of model time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, NewType, Protocol

import simpy
from simpy.events import EventPriority

from hal import TimeSliceLevel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

DEFAULT_SLICE_NS = 2_048_000
"""Two units of 1.024 ms, for CUDA contexts from Ampere to Blackwell: kernel timings on RTX 3090,
RTX 4090, RTX 5090 and A100 agree with it within 5 %."""

TEGRA_SLICE_NS = 1_024_000
"""Default of Tegra's scheduler, and what NVIDIA's open driver sets for a new channel group."""

SWITCH_BASE_NS = 70_000
SWITCH_OCCUPANCY_NS = 150_000
"""A switch takes 70 us and 150 us times the occupancy: 74 us were measured with small kernels,
217 to 220 us with kernels that fill the GPU (RTX 5090, A100)."""

LEVEL_SLICES_NS: Mapping[TimeSliceLevel, int] = MappingProxyType(
    {
        TimeSliceLevel.DEFAULT: DEFAULT_SLICE_NS,
        TimeSliceLevel.SHORT: 1_000_000,
        TimeSliceLevel.MEDIUM: 4_000_000,
        TimeSliceLevel.LONG: 30_000_000,
    }
)
"""Slices of the levels that `nvidia-smi compute-policy --set-timeslice` knows. NVIDIA publishes no
durations: all but the default are assumed."""


def to_ns(seconds: float) -> int:
    return round(seconds * NS_PER_S)


def until_s(now_s: float, for_s: float | None) -> float:
    """When something that lasts `for_s` from now on ends; None: never.

    In whole nanoseconds, as the clock counts: a sum of seconds may lie behind the moment at which
    the clock looks again, and would be found to last on then.
    """
    return math.inf if for_s is None else to_ns(now_s + for_s) / NS_PER_S


@dataclass(frozen=True, slots=True)
class SliceParameters:
    """Slice length, and cost of a switch between contexts of given occupancies, in nanoseconds."""

    slice_ns: int = DEFAULT_SLICE_NS
    switch_base_ns: int = SWITCH_BASE_NS
    switch_occupancy_ns: int = SWITCH_OCCUPANCY_NS

    def switch_ns(self, outgoing: float, incoming: float) -> int:
        """The cost of a switch: half of what depends on occupancy is saving, half restoring."""
        mean = (outgoing + incoming) / 2
        return self.switch_base_ns + round(self.switch_occupancy_ns * mean)


ContextId = NewType("ContextId", int)
"""A context of a GPU: the address space and channels of one process."""

PPM = 1_000_000
"""Speed 1, in parts per million."""


@dataclass(frozen=True, slots=True)
class Ended:
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


class Scheduler(Protocol):
    usage: Usage

    @property
    def now_ns(self) -> int: ...

    def on_gpu(self, context: ContextId) -> bool: ...

    def submit(
        self, context: ContextId, work_ns: int, occupancy: float, mps_share: float | None = None
    ) -> None:
        """Give a context work now: `work_ns` (at least 1) alone on the GPU at full speed.

        `occupancy` (0 to 1) is how much of the GPU's registers, shared memory or SMs it fills.
        `mps_share` (0 to 1) counts with MPS alone: see `sim.gpu.schedulers.Mps`.
        """

    def cancel(self, context: ContextId) -> None:
        """Take the context off the GPU now, with its work if it has some."""

    def advance(self, to_ns: int) -> Sequence[Ended]:
        """Let time pass up to `to_ns`; the works that ended, in order.

        What is submitted next counts as submitted at that moment, before anything is decided in
        it: a context whose work just ended may go on in the rest of its slice.
        """

    def next_end_ns(self) -> int | None:
        """When the next work ends if nothing else happens; None if there is no work."""

    def set_speed(self, ppm: int) -> None:
        """Run at `ppm` millionths of full speed from now on (clocks that are throttled)."""


_AFTER_ALL_ELSE = EventPriority(2)
"""simpy runs events of one moment by priority: 0 is urgent, 1 the usual one."""


class _EndOfMoment(simpy.Event):
    """Calls back when everything else that happens at this moment has happened."""

    def __init__(self, env: simpy.Environment, call: Callable[[simpy.Event], None]) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        self.callbacks = [call]
        env.schedule(self, priority=_AFTER_ALL_ELSE)


class ContextGone(Exception):
    """The context was taken off the GPU while it had work; that is the cause of a failed event."""


class GpuCompute:
    """The compute of one GPU, or of one MIG device, whose clock is `env`."""

    def __init__(self, env: simpy.Environment, scheduler: Scheduler) -> None:
        self._env = env
        self.scheduler = scheduler
        self._working: dict[ContextId, simpy.Event] = {}
        self._settling = False
        self._alarm = 0
        self._ppm = PPM

    def run(
        self, context: ContextId, work_ns: int, occupancy: float, mps_share: float | None = None
    ) -> simpy.Event:
        """An event for the end of the work; it fails with `ContextGone` where that is cancelled."""
        if context in self._working:
            raise ValueError(f"context {context} has work already")
        self.catch_up()
        self.scheduler.submit(context, work_ns, occupancy, mps_share)
        event = self._working[context] = self._env.event()
        self._settle()
        return event

    def cancel(self, context: ContextId) -> None:
        """Take a context off the GPU; one without work needs it, too, for it may be resident."""
        self.catch_up()
        self.scheduler.cancel(context)
        event = self._working.pop(context, None)
        if event is not None:
            event.fail(ContextGone())
            event.defused = True  # who waited for it may be gone as well
        self._settle()

    def set_speed(self, ppm: int) -> None:
        if ppm == self._ppm:
            return
        self._ppm = ppm
        self.catch_up()
        self.scheduler.set_speed(ppm)
        self._settle()

    def usage(self) -> Usage:
        """Where the time went up to now; a copy."""
        self.catch_up()
        self._settle()
        usage = self.scheduler.usage
        return replace(usage, busy_ns=dict(usage.busy_ns))

    def changed(self) -> None:
        self._settle()

    def catch_up(self) -> None:
        now_ns = int(self._env.now)
        if self.scheduler.now_ns < now_ns:
            self._notify(self.scheduler.advance(now_ns))

    def _notify(self, ended: Sequence[Ended]) -> None:
        for one in ended:
            self._working.pop(one.context).succeed(one.at_ns)

    def _settle(self) -> None:
        """Set the next alarm once all other events of this moment were processed."""
        if self._settling:
            return
        self._settling = True
        _EndOfMoment(self._env, self._set_alarm)

    def _set_alarm(self, _event: simpy.Event) -> None:
        self._settling = False
        self._alarm += 1
        next_end_ns = self.scheduler.next_end_ns()
        if next_end_ns is None:
            return
        number = self._alarm
        timeout = self._env.timeout(next_end_ns - self._env.now)
        timeout.callbacks = [lambda _event: self._ring(number)]

    def _ring(self, number: int) -> None:
        if number == self._alarm:
            self.catch_up()
            self._settle()
