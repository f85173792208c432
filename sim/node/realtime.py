"""A simulated node in real time, and `hal.Backend` on it.

One lock guards the node. A thread advances the clock to each scheduled event (model seconds are
wall-clock seconds times a speed); a reader advances the node to the present first.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hal import DriverUnavailable, GpuCalls, GpuLost, NotSupported
from sim.node.reader import NodeReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from hal import ComputeProcess, Event, Gpu, Link, Probe, Telemetry, TimeSliceLevel
    from sim.gpu.gpu import SimulatedGpu
    from sim.node.node import SimulatedNode


MOST_RECORDS = 256
"""Of tenants; older ones that ended are forgotten."""


class RealTimeNode:
    """A node that lives in real time from `start` on; safe from any thread."""

    def __init__(self, node: SimulatedNode, speed: float = 1.0) -> None:
        self._node = node
        self._speed = speed
        self._changed = threading.Condition()
        self._started_s: float | None = None
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._interrupts = 0
        self._watchers: list[Callable[[], None]] = []

    def start(self) -> None:
        with self._changed:
            if self._thread is not None:
                return
            self._started_s = time.monotonic()
            self._thread = threading.Thread(target=self._pace, name="sim-clock", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop the clock's thread and end calls that hang; the node stays as it is."""
        with self._changed:
            self._stopping = True
            self._wake()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def update(self) -> Iterator[SimulatedNode]:
        """The node, advanced to the present and held still; changes wake callers that wait."""
        with self._changed:
            self._advance()
            try:
                yield self._node
            finally:
                self._wake()

    @contextmanager
    def read(self) -> Iterator[SimulatedNode]:
        """The node, advanced to the present and held still, to read from."""
        with self._changed:
            self._advance()
            yield self._node

    def changed(self) -> None:
        """Wake callers that wait: a reader has changed the node, which it still holds."""
        with self._changed:
            self._wake()

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed`, which must not block, whenever something may have changed."""
        with self._changed:
            self._watchers.append(changed)

    def unwatch(self, changed: Callable[[], None]) -> None:
        with self._changed:
            self._watchers.remove(changed)

    @contextmanager
    def call(self, uuid: str | None = None) -> Iterator[SimulatedNode]:
        """The node as a call to its driver finds it; `uuid` is the GPU that the call is about.

        While the driver or that GPU hangs this waits, without the lock. Raises `DriverUnavailable`
        where the driver is not loaded, or the node is stopped during a hang.
        """
        with self._changed:
            self._advance()
            self._wait_while_hanging(uuid)
            failure = self._node.driver.failure()
            if failure is not None:
                raise failure
            yield self._node

    def wait_events(self, timeout_s: float) -> Sequence[Event]:
        """Driver events, waiting at most `timeout_s` or until `interrupt`.

        A driver that hangs at its end holds it up for longer; `interrupt` does not help then.
        Raises `DriverUnavailable` where events cannot be waited for, now or later.
        """
        node = self._node
        with self._changed:
            self._advance()
            seen = self._interrupts
            self._changed.wait_for(
                lambda: (
                    node.has_events
                    or self._interrupts != seen
                    or node.driver.watch_failure(node.now_s) is not None
                ),
                timeout_s,
            )
            self._wait_while_hanging(None)
            failure = node.driver.watch_failure(node.now_s)
            if failure is not None:
                raise failure
            return node.take_events()

    def interrupt(self) -> None:
        with self._changed:
            self._interrupts += 1
            self._wake()

    def _pace(self) -> None:
        with self._changed:
            while not self._stopping:
                self._advance()
                pause_s = (self._node.next_s - self._model_time_s()) / self._speed
                # An idle model has nothing scheduled: wait for a change.
                self._changed.wait(min(max(pause_s, 0.0), 3600.0))

    def _advance(self) -> None:
        """To the present; wakes waiting callers if an event or the end of a hang was due."""
        now_s = self._model_time_s()
        due = self._node.next_s <= now_s
        self._node.advance(now_s)
        if self._started_s is not None:
            self._forget()
        if due:
            self._wake()

    def _forget(self) -> None:
        """Forget requests, and the oldest tenants that ended: nobody asks, and a node may live for
        days."""
        records = self._node.records
        for record in records:
            record.forget_requests()
        if len(records) > MOST_RECORDS:
            ended = [one for one in records if one.ended_ns is not None]
            forgotten = set(map(id, ended[: len(records) - MOST_RECORDS // 2]))
            self._node.records = [one for one in records if id(one) not in forgotten]

    def _wake(self) -> None:
        self._changed.notify_all()
        for changed in self._watchers:
            changed()

    def _wait_while_hanging(self, uuid: str | None) -> None:
        self._changed.wait_for(lambda: self._stopping or not self._node.hangs(uuid))
        if self._node.hangs(uuid):
            raise DriverUnavailable(
                "the simulated node was stopped while a call to its driver hung",
                "Start the node again",
            )

    def _model_time_s(self) -> float:
        if self._started_s is None:
            return 0.0
        return (time.monotonic() - self._started_s) * self._speed


class SimBackend:
    """See `hal.Backend`; the node's time starts with the first `open` and goes on after `close`.

    A call to a driver or about a GPU that hangs does not return, whatever `close` does; the node's
    `stop` ends it with `DriverUnavailable`.
    """

    def __init__(self, node: RealTimeNode) -> None:
        self._node = node
        self._open = False
        self._calls: GpuCalls[str] = GpuCalls()
        self._links: tuple[frozenset[str], Mapping[tuple[str, str], Link]] | None = None
        with node.update() as model:
            self._reader = NodeReader(model)
            self._driver_version = model.scenario.driver_version
            self._cuda_version: tuple[int, int] | None = model.scenario.cuda_version

    def open(self) -> None:
        self._node.start()
        with self._node.call():
            if self._open:
                return
            self._reader.connect()
            self._driver_version = self._reader.driver_version()
            self._cuda_version = self._reader.cuda_version()
            self._open = True

    def close(self) -> None:
        self._open = False
        self._node.interrupt()

    def call_lasting_s(self, thread: int) -> float | None:
        return self._calls.lasting_s(thread)

    def give_up(self, thread: int) -> bool:
        return self._calls.give_up(thread)

    @property
    def driver_version(self) -> str:
        """That of the last `open`; known even while the driver does not answer."""
        return self._driver_version

    @property
    def cuda_version(self) -> tuple[int, int] | None:
        """As `driver_version`."""
        return self._cuda_version

    def gpus(self) -> tuple[Gpu, ...]:
        with self._node.call():
            return self._reader.gpus()

    def wait_events(self, timeout_s: float) -> Sequence[Event]:
        return self._node.wait_events(timeout_s)

    def probe(self, uuid: str) -> Probe:
        with self._calls.about(uuid), self._node.call(uuid):
            return self._reader.probe(uuid)

    def telemetry(self, uuid: str) -> Telemetry:
        with self._calls.about(uuid), self._node.call(uuid):
            return self._reader.telemetry(uuid)

    def processes(self, uuid: str) -> tuple[ComputeProcess, ...]:
        with self._calls.about(uuid), self._node.call(uuid):
            return self._reader.processes(uuid)

    def links(self) -> Mapping[tuple[str, str], Link]:
        """Connections, computed again only when other GPUs respond."""
        with self._node.call() as model:
            answering = frozenset(uuid for uuid, gpu in model.gpus.items() if not gpu.lost)
            if self._links is None or self._links[0] != answering:
                self._links = (answering, self._reader.links())
        return self._links[1]

    def set_time_slice(self, uuid: str, level: TimeSliceLevel) -> None:
        """Slices of another length; NVIDIA publishes no durations, so those of levels are assumed.

        Tenants that run feel it at once, although with a real driver only later ones do.
        """
        with self._calls.about(uuid), self._node.call(uuid) as model:
            gpu = _reachable(model, uuid)
            if gpu.identity.mig_enabled:
                raise NotSupported("a GPU in MIG mode has no time-slice level")
            if not gpu.profile.has_levels:
                raise NotSupported(f"{gpu.identity.product} has no time-slice level")
            gpu.set_time_slice(level)


def _reachable(model: SimulatedNode, uuid: str) -> SimulatedGpu:
    gpu = model.gpu(uuid)
    if gpu.lost:
        raise GpuLost(uuid)
    return gpu
