"""Watches the hardware: opens the driver, waits for events, probes and rescans at a period.

Every hardware call runs in a thread of its own with a deadline; results go to the `Node`. A monitor
that cannot watch says so: when it could not for some time, the GPUs count as Unhealthy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuplugin.daemon.backoff import Backoff
from gpuplugin.daemon.hardware.thread import HalHung, HalThread
from gpuplugin.daemon.supervisor import Fatal
from gpuplugin.daemon.timers import next_tick_s
from hal import (
    DriverUnavailable,
    GpuAppeared,
    HalError,
    Probe,
    RecoveryAction,
    UnknownGpu,
    XidAction,
    XidError,
    lookup_xid,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuplugin.daemon.hardware.queries import HalQueries
    from gpuplugin.daemon.http.metrics import Metrics
    from gpuplugin.daemon.node import Node
    from gpuplugin.daemon.status import Vitals
    from hal import Backend, Event, Gpu

_OPEN_DEADLINE_S = 60.0
_CALL_DEADLINE_S = 20.0
_PROBE_DEADLINE_S = 10.0
_WAIT_S = 5.0
_SOON_S = 0.1
_CLOSE_DEADLINE_S = 3.0
_STABLE_AFTER_S = 60.0

log = logging.getLogger(__name__)


class MonitorFailed(Exception):
    """The hardware cannot be watched any more; the driver must be opened anew."""


@dataclass(frozen=True, slots=True)
class MonitorPlan:
    """How the hardware is watched: how often it is probed, and for how long watching may fail.

    `watch_events` is false where no event could change anything: some platforms have none.
    """

    probe_interval_s: float
    blind_after_s: float
    watch_events: bool = True


class Monitor:
    """The task that keeps the node's state true to the hardware."""

    def __init__(
        self,
        backend: Backend,
        queries: HalQueries,
        node: Node,
        vitals: Vitals,
        metrics: Metrics,
        *,
        plan: Callable[[], MonitorPlan],
        fail_on_init_error: bool,
        on_open: Callable[[], None],
    ) -> None:
        self._backend = backend
        self._node = node
        self._vitals = vitals
        self._metrics = metrics
        self._plan = plan
        self._fail_on_init_error = fail_on_init_error
        self._on_open = on_open
        self._events_thread = HalThread("hal-events")
        self._queries = queries
        self._events = _EventTap(backend)
        self._opened_before = False
        self._look_now = asyncio.Event()

    async def run(self) -> None:
        """Open, watch, and open again when watching fails. Never returns.

        Raises:
            Fatal: the driver cannot be opened at start and the user asked to exit then.
        """
        try:
            await self._run()
        except Exception as error:
            self._node.blinded(f"the monitor failed: {error}")
            raise
        finally:
            await self._close()
            self._events_thread.close()
            self._queries.close()

    async def _run(self) -> None:
        backoff = Backoff(1.0, 30.0)
        while True:
            await self._open()
            watched_since_s = time.monotonic()
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._watch_events(), name="events")
                    tasks.create_task(self._probe_and_rescan(), name="probes")
            except* MonitorFailed as failures:
                reason = str(failures.exceptions[0])
                self._node.blinded(reason)
                self._vitals.set("monitor", reason, ok=False)
                log.error(  # noqa: TRY400 - the text says it all
                    "the GPUs cannot be watched and count as Unhealthy: %s",
                    reason,
                    extra={"event": "monitor-blind"},
                )
            await self._close()
            if time.monotonic() - watched_since_s > _STABLE_AFTER_S:
                backoff.reset()
            await asyncio.sleep(backoff.next_s())

    async def _open(self) -> None:
        backoff = Backoff(1.0, 30.0)
        while True:
            try:
                await self._queries.ask(_OPEN_DEADLINE_S, self._backend.open)
                # A driver that lists but cannot watch is not open: never blindly Healthy.
                if self._plan().watch_events:
                    await self._events_thread.call(_CALL_DEADLINE_S, self._events.wait_events, 0.0)
                gpus, probes = await self._look()
            except HalError as error:
                self._open_failed(error)
                await asyncio.sleep(backoff.next_s())
                continue
            self._opened_before = True
            self._queries.open = True
            self._on_open()
            self._node.saw(gpus, probes, self._events.taken())
            self._node.blinded("")
            await self._read_links()
            self._set_watching(len(gpus))
            return

    def _open_failed(self, error: HalError) -> None:
        self._metrics.monitor_failures.labels(stage="open").inc()
        if self._fail_on_init_error and not self._opened_before:
            raise Fatal(str(error))
        if self._vitals.set("monitor", str(error), ok=False):
            log.error(
                "the driver cannot be opened, trying again: %s",
                error,
                extra={"event": "driver-unavailable", "error": type(error).__name__},
            )

    def _set_watching(self, count: int) -> None:
        if count:
            text = f"watching {count} GPUs, driver {self._backend.driver_version}"
        else:
            text = f"driver {self._backend.driver_version} lists no GPU; looking again"
        if self._vitals.set("monitor", text, ok=count > 0):
            log.info(text, extra={"event": "monitor"})

    async def _watch_events(self) -> None:
        backoff = Backoff(0.1, 5.0)
        patience = self._patience("events")
        while True:
            plan = self._plan()
            if not plan.watch_events:
                await asyncio.sleep(_WAIT_S)
                patience.renew()
                continue
            try:
                await self._events_thread.call(
                    _WAIT_S + plan.blind_after_s, self._events.wait_events, _WAIT_S
                )
            except HalError as error:
                left_s = patience.lose(error, plan.blind_after_s)
                await asyncio.sleep(min(left_s, backoff.next_s()))
                continue
            patience.renew()
            backoff.reset()
            if events := self._events.taken():
                self._node.happened(events)
            if any(_calls_for_a_look(event) for event in events):
                self._look_now.set()

    async def _probe_and_rescan(self) -> None:
        backoff = Backoff(0.5, 5.0)
        patience = self._patience("probe")
        pause_s = self._plan().probe_interval_s
        while True:
            await self._pause(pause_s)
            plan = self._plan()
            pause_s = plan.probe_interval_s
            try:
                known = {gpu.uuid for gpu in self._node.gpus}
                gpus, probes = await self._look()
            except HalError as error:
                left_s = patience.lose(error, plan.blind_after_s)
                pause_s = min(pause_s, left_s, backoff.next_s())
                continue
            patience.renew()
            backoff.reset()
            self._node.saw(gpus, probes)
            if {gpu.uuid for gpu in gpus} != known:
                await self._read_links()
            self._set_watching(len(gpus))

    async def _pause(self, pause_s: float) -> None:
        """Wait for the next look; an event may call for it sooner, but not all the time."""
        loop = asyncio.get_running_loop()
        soon_s = loop.time() + min(pause_s, _SOON_S)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(max(next_tick_s(pause_s), soon_s)):
                await self._look_now.wait()
                await asyncio.sleep(soon_s - loop.time())
        self._look_now.clear()

    def _patience(self, stage: str) -> _Patience:
        counter = self._metrics.monitor_failures.labels(stage=stage)
        return _Patience(stage, counter.inc)

    async def _read_links(self) -> None:
        """How GPUs are connected only serves preferences: a failure costs nothing else."""
        try:
            links = await self._queries.ask(_CALL_DEADLINE_S, self._backend.links)
        except HalError as error:
            log.warning("links between GPUs cannot be read: %s", error, extra={"event": "links"})
            return
        self._node.linked(links)

    async def _look(self) -> tuple[tuple[Gpu, ...], dict[str, Probe]]:
        """List and probe all GPUs; one that cannot be probed counts as unreachable.

        Raises:
            HalError: no GPU can be listed, or none of them probed.
        """
        gpus = await self._queries.ask(_CALL_DEADLINE_S, self._backend.gpus)
        probes: dict[str, Probe] = {}
        failure: HalError | None = None
        answered = 0
        uuids = (*(gpu.uuid for gpu in gpus), *self._node.board.gpus)
        answers = await self._queries.ask_gpus(uuids, _PROBE_DEADLINE_S, self._probe_in_thread)
        for uuid, answer in answers.items():
            match answer:
                case UnknownGpu():
                    continue  # listed by an earlier driver; the board has it as lost
                case DriverUnavailable():
                    raise answer
                case HalError():
                    failure = answer
                    probes[uuid] = self._unreachable(uuid, answer)
                case _:
                    probes[uuid] = answer
                    answered += 1
        if failure is not None and not answered:
            raise failure
        return gpus, probes

    def _probe_in_thread(self, uuid: str) -> Probe:
        started_s = time.perf_counter()
        answer = self._backend.probe(uuid)
        self._metrics.probe_seconds.observe(time.perf_counter() - started_s)
        return answer

    def _unreachable(self, uuid: str, error: HalError) -> Probe:
        self._metrics.monitor_failures.labels(stage="probe").inc()
        log.warning(
            "GPU %s cannot be probed and counts as unreachable: %s",
            uuid,
            error,
            extra={"event": "probe-failure", "uuid": uuid},
        )
        health = self._node.board.gpus.get(uuid)
        return Probe(
            reachable=False,
            recovery_action=RecoveryAction.UNKNOWN,
            row_remap_pending=False,
            row_remap_failed=False,
            uncorrectable_ecc=0,
            epoch=(health.epoch if health else None) or "",
        )

    async def _close(self) -> None:
        self._queries.open = False
        closer = HalThread("hal-close")  # the others may hang in the driver
        try:
            await closer.call(_CLOSE_DEADLINE_S, self._backend.close)
        except HalHung:
            log.warning("the driver did not close in time", extra={"event": "close-timeout"})
        finally:
            closer.close()


class _EventTap:
    """Keeps events until they are asked for.

    A call that was given up while the driver hung takes events all the same when it returns: they
    wait here, and are not lost with its answer.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._taken: deque[Event] = deque()

    def wait_events(self, timeout_s: float) -> None:
        """In a thread: take what the driver reports within `timeout_s`."""
        self._taken.extend(self._backend.wait_events(timeout_s))

    def taken(self) -> tuple[Event, ...]:
        """What was taken since the last call."""
        return tuple(self._taken.popleft() for _ in range(len(self._taken)))


class _Patience:
    """Bears failures of one kind of watching until they have lasted too long."""

    def __init__(self, stage: str, count: Callable[[], None]) -> None:
        self._stage = stage
        self._count = count
        self._failures = 0
        self._good_s = time.monotonic()

    def renew(self) -> None:
        """Watching worked."""
        self._failures = 0
        self._good_s = time.monotonic()

    def lose(self, error: HalError, at_most_s: float) -> float:
        """Watching failed; how many seconds it still may.

        Raises:
            MonitorFailed: it has failed for `at_most_s`.
        """
        self._count()
        self._failures += 1
        failing_s = time.monotonic() - self._good_s
        log.warning(
            "%s failed (%d in a row): %s",
            self._stage,
            self._failures,
            error,
            extra={"event": "monitor-failure", "stage": self._stage},
        )
        if failing_s >= at_most_s:
            raise MonitorFailed(f"{self._stage} failed for {failing_s:.1f} s: {error}")
        return at_most_s - failing_s


def _calls_for_a_look(event: Event) -> bool:
    """True if only a probe can tell what the event means."""
    if isinstance(event, XidError):
        return lookup_xid(event.xid).action is XidAction.RECOVERY_ACTION_CHANGED
    return isinstance(event, GpuAppeared)
