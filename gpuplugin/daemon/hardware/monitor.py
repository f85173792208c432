"""Watches the hardware: opens the driver, waits for events, reads and probes GPUs.

Every hardware call runs in a thread of its own with a deadline; results go to the `Node`. When to
call, and what failures mean, is decided in `core.watch`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from gpuplugin.core import watch as deadlines
from gpuplugin.core.watch import Watch, WatchFailed, judge_probes
from gpuplugin.daemon.calls import HalLane, HalThread
from gpuplugin.daemon.logs import log_fact
from gpuplugin.daemon.tasks import Fatal
from hal import DriverReplaced, HalError, HalHung

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from gpuplugin.core.watch import Activity, WatchPlan
    from gpuplugin.daemon.calls import HalQueries
    from gpuplugin.daemon.http.metrics import Metrics
    from gpuplugin.daemon.node import Node
    from gpuplugin.daemon.status import StatusBoard
    from hal import Backend, Event, Gpu, Probe

_MOST_DRAINS = 10
"""Of a driver that never stops to report, waiting works."""

log = logging.getLogger(__name__)


class Monitor:
    """Keeps the node's state up to date.

    `on_open` is awaited before GPUs are published, `on_end` before the driver is closed for good.
    """

    def __init__(
        self,
        backend: Backend,
        queries: HalQueries,
        node: Node,
        status: StatusBoard,
        metrics: Metrics,
        *,
        plan: Callable[[], WatchPlan],
        fail_on_init_error: bool,
        on_open: Callable[[], Awaitable[None]],
        on_end: Callable[[], Awaitable[None]],
    ) -> None:
        self._backend = backend
        self._node = node
        self._status = status
        self._metrics = metrics
        self._plan = plan
        self._watch = Watch(plan())
        self._fail_on_init_error = fail_on_init_error
        self._on_open = on_open
        self._on_end = on_end
        self._events_lane = HalLane("hal-events", backend)
        self._queries = queries
        self._events = _EventTap(backend)
        self._probe_failures: Mapping[str, HalError] = {}
        self._update_required = asyncio.Event()

    def replanned(self) -> None:
        """The plan is another one: an update may be due sooner, or due at all."""
        self._update_required.set()

    async def run(self) -> None:
        """Open, watch, reopen; raises `Fatal` if this process cannot open the driver any more.

        With failOnInitError also if the first open fails.
        """
        try:
            await self._run()
        except Exception as error:
            self._node.blinded(f"the monitor failed: {error}")
            raise
        finally:
            try:
                await self._on_end()
                await self._close()
            finally:
                self._events_lane.close()
                self._queries.close()

    async def _run(self) -> None:
        while True:
            await self._open()
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._receive_events(), name="events")
                    tasks.create_task(self._update(), name="updates")
            except* WatchFailed as failures:
                reason = str(failures.exceptions[0])
                self._node.blinded(reason)
                self._status.set("monitor", reason, ok=False)
                text = f"the GPUs cannot be watched and count as Unhealthy: {reason}"
                log_fact(log, logging.ERROR, "monitor-blind", text)
            await self._close()
            await _sleep_until(self._watch.closed(time.monotonic()))

    async def _open(self) -> None:
        watch = self._watch
        while True:
            watch.plan = self._plan()
            try:
                await self._queries.call(deadlines.OPEN_DEADLINE_S, self._backend.open)
                # A driver that lists but cannot watch is not open: never blindly Healthy.
                if watch.plan.watch_events:
                    await self._events_lane.call(deadlines.CALL_DEADLINE_S, self._events.drain)
                # A driver takes longer for the first calls than for those after them.
                gpus, probes = await self._read(deadlines.CALL_DEADLINE_S)
            except HalError as error:
                self._open_failed(error)
                await _sleep_until(watch.open_failed(time.monotonic()))
                continue
            watch.opened(time.monotonic())
            self._queries.open = True
            await self._on_open()
            self._node.updated(gpus, probes, self._events.taken())
            await self._read_links(probes)
            self._set_watching(len(gpus))
            return

    def _open_failed(self, error: HalError) -> None:
        self._metrics.monitor_failures.labels(stage="open").inc()
        never_opened = self._fail_on_init_error and not self._watch.opened_before
        if never_opened or isinstance(error, DriverReplaced):
            raise Fatal(str(error))
        if self._status.set("monitor", str(error), ok=False):
            text = f"the driver cannot be opened, trying again: {error}"
            kind = type(error).__name__
            log_fact(log, logging.ERROR, "driver-unavailable", text, error=kind)

    def _set_watching(self, count: int) -> None:
        if count:
            text = f"watching {count} GPUs, driver {self._backend.driver_version}"
        else:
            text = f"driver {self._backend.driver_version} lists no GPU; retrying"
        if self._status.set("monitor", text, ok=count > 0):
            log.info(text, extra={"event": "monitor"})

    async def _receive_events(self) -> None:
        watch, wait_s = self._watch, deadlines.EVENT_WAIT_S
        self._count_failures(watch.events)
        while True:
            watch.plan = self._plan()
            if not watch.plan.watch_events:
                await asyncio.sleep(wait_s)
                watch.events.succeeded(time.monotonic())
                continue
            try:
                await self._events_lane.call(
                    wait_s + watch.plan.blind_after_s, self._events.wait_events, wait_s
                )
            except HalError as error:
                try:
                    pause_s = watch.events_failed(error, time.monotonic())
                finally:
                    self._failed(watch.events, error)
                await asyncio.sleep(pause_s)
                continue
            watch.events.succeeded(time.monotonic())
            if events := self._events.taken():
                self._node.events_received(events)
                watch.events_received(events)
                self._update_required.set()

    async def _update(self) -> None:
        watch = self._watch
        self._count_failures(watch.updates)
        while True:
            await self._wait_for_update()
            try:
                gpus, probes = await self._read(watch.plan.hang_after_s)
            except HalError as error:
                try:
                    watch.update_failed(error, time.monotonic())
                finally:
                    self._failed(watch.updates, error)
                continue
            watch.updated(time.monotonic())
            self._node.updated(gpus, probes)
            await self._read_links(probes)
            self._set_watching(len(gpus))

    async def _wait_for_update(self) -> None:
        """Until an update is due; events and another plan may make one due sooner, or at all."""
        while True:
            self._watch.plan = self._plan()
            due_s = self._watch.update_due_s(self._node.view.board)
            if due_s <= (now_s := time.monotonic()):
                return
            self._update_required.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(due_s - now_s if due_s < math.inf else None):
                    await self._update_required.wait()

    def _count_failures(self, activity: Activity) -> None:
        self._metrics.monitor_failures.labels(stage=activity.stage)  # seen from the start

    def _failed(self, activity: Activity, error: HalError) -> None:
        self._metrics.monitor_failures.labels(stage=activity.stage).inc()
        text = f"{activity.stage} failed ({activity.failures} in a row): {error}"
        log_fact(log, logging.WARNING, "monitor-failure", text, stage=activity.stage)

    async def _read_links(self, probes: Mapping[str, Probe]) -> None:
        """How GPUs are connected only serves preferences: a failure costs nothing else."""
        if not self._watch.links_due(probes):
            return
        try:
            hang_after_s = self._watch.plan.hang_after_s
            links = await self._queries.call(hang_after_s, self._backend.links)
        except HalError as error:
            log.warning("links between GPUs cannot be read: %s", error, extra={"event": "links"})
            return
        self._node.linked(links)

    async def _read(self, hang_after_s: float) -> tuple[tuple[Gpu, ...], dict[str, Probe]]:
        """List and probe all GPUs; raises `HalError` if none can be listed, or none probed."""
        gpus = await self._queries.call(hang_after_s, self._backend.gpus)
        board = self._node.view.board
        uuids = (*(gpu.uuid for gpu in gpus), *board.gpus)
        results = await self._queries.call_gpus(uuids, hang_after_s, self._probe_in_thread)
        probes = judge_probes(results, board)
        for uuid, error in probes.failures.items():
            self._metrics.monitor_failures.labels(stage="probe").inc()
            if type(self._probe_failures.get(uuid)) is not type(error):
                text = f"GPU {uuid} cannot be probed and counts as unreachable: {error}"
                log_fact(log, logging.WARNING, "probe-failure", text, uuid=uuid)
        self._probe_failures = probes.failures
        return gpus, dict(probes.by_uuid)

    def _probe_in_thread(self, uuid: str) -> Probe:
        started_s = time.perf_counter()
        probe = self._backend.probe(uuid)
        self._metrics.probe_seconds.observe(time.perf_counter() - started_s)
        return probe

    async def _close(self) -> None:
        self._queries.open = False
        closer = HalThread("hal-close")  # the others may hang in the driver
        try:
            await closer.call(deadlines.CLOSE_DEADLINE_S, self._backend.close)
        except HalHung:
            log.warning("the driver did not close in time", extra={"event": "close-timeout"})
        finally:
            closer.close()


class _EventTap:
    """Keeps the events of `wait_events` until taken, also of calls that were given up as hung."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._taken: deque[Event] = deque()

    def wait_events(self, timeout_s: float) -> None:
        """In a thread: take what the driver reports within `timeout_s`."""
        self._taken.extend(self._backend.wait_events(timeout_s))

    def drain(self) -> None:
        """In a thread: take what is there, until a wait finds nothing, or fails.

        A call that returns what was found before it waits says nothing of whether it can wait.
        """
        for _ in range(_MOST_DRAINS):
            before = len(self._taken)
            self.wait_events(0.0)
            if len(self._taken) == before:
                return

    def taken(self) -> tuple[Event, ...]:
        return tuple(self._taken.popleft() for _ in range(len(self._taken)))


async def _sleep_until(due_s: float) -> None:
    await asyncio.sleep(max(0.0, due_s - time.monotonic()))
