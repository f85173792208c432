"""A compute scheduler on a simpy clock of integer nanoseconds: work is an event that succeeds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import simpy
from simpy.events import EventPriority

from sim.gpu.compute.engine import PPM

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sim.gpu.compute.engine import ContextId, Ended, Engine, Usage

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

    def __init__(self, env: simpy.Environment, engine: Engine) -> None:
        self._env = env
        self.engine = engine
        self._working: dict[ContextId, simpy.Event] = {}
        self._settling = False
        self._alarm = 0
        self._ppm = PPM

    def run(self, context: ContextId, work_ns: int, occupancy: float) -> simpy.Event:
        """An event that succeeds when the work is done; it fails with `ContextGone` if cancelled.

        Raises:
            ValueError: the context has work already, or the work takes no time.
        """
        if context in self._working:
            raise ValueError(f"context {context} has work already")
        self.catch_up()
        self.engine.submit(context, work_ns, occupancy)
        event = self._working[context] = self._env.event()
        self._settle()
        return event

    def cancel(self, context: ContextId) -> None:
        """Take a context off the GPU; one without work needs it, too, for it may be resident."""
        self.catch_up()
        self.engine.cancel(context)
        event = self._working.pop(context, None)
        if event is not None:
            event.fail(ContextGone())
            event.defused = True  # who waited for it may be gone as well
        self._settle()

    def set_speed(self, ppm: int) -> None:
        """Run at `ppm` millionths of full speed from now on."""
        if ppm == self._ppm:
            return
        self._ppm = ppm
        self.catch_up()
        self.engine.set_speed(ppm)
        self._settle()

    def usage(self) -> Usage:
        """Where the time went up to now; a copy."""
        self.catch_up()
        self._settle()
        usage = self.engine.usage
        return replace(usage, busy_ns=dict(usage.busy_ns))

    def changed(self) -> None:
        """The engine was changed from outside: ends come at other times now."""
        self._settle()

    def catch_up(self) -> None:
        """Bring the engine to the present, so that what it tells is of now."""
        now_ns = int(self._env.now)
        if self.engine.now_ns < now_ns:
            self._tell(self.engine.advance(now_ns))

    def _tell(self, ended: Sequence[Ended]) -> None:
        for one in ended:
            self._working.pop(one.context).succeed(one.at_ns)

    def _settle(self) -> None:
        """Set the alarm anew once everything of this moment has happened."""
        if self._settling:
            return
        self._settling = True
        _EndOfMoment(self._env, self._set_alarm)

    def _set_alarm(self, _event: simpy.Event) -> None:
        self._settling = False
        self._alarm += 1
        next_end_ns = self.engine.next_end_ns()
        if next_end_ns is None:
            return
        number = self._alarm
        timeout = self._env.timeout(next_end_ns - self._env.now)
        timeout.callbacks = [lambda _event: self._ring(number)]

    def _ring(self, number: int) -> None:
        if number == self._alarm:
            self.catch_up()
            self._settle()
