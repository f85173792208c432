"""Reads what GPUs do and which pods use them, when somebody asks for metrics or the status page.

Event loop only, but for `ask`; the blocking reads are in threads. What is made of a reading is in
`core.usage`, how it is exported in `http.exposition`. Nothing here decides on health.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpuplugin.core.usage import HOLDINGS, PODS, PROCESSES, Reading, Seen, Work, usage_of
from gpuplugin.daemon.calls import HalThread
from gpuplugin.daemon.cluster.pods import (
    CgroupsUnreadable,
    PodIdentities,
    PodResources,
    PodResourcesUnavailable,
)
from gpuplugin.daemon.logs import log_fact
from hal import HalError, NotSupported

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpuplugin.config.settings import Settings
    from gpuplugin.core.usage import Holding, PodName
    from gpuplugin.daemon.calls import HalQueries
    from gpuplugin.daemon.frontdoor import FrontDoor
    from gpuplugin.daemon.node import Node
    from hal import Backend, ComputeProcess, Telemetry

_GPU_DEADLINE_S = 2.0
_HOST_DEADLINE_S = 5.0
_FRESH_SHARE = 0.9

log = logging.getLogger(__name__)


class Sampler:
    """The task; a None for `pod_resources` or `identities` means that the user switched it off."""

    def __init__(
        self,
        backend: Backend,
        queries: HalQueries,
        node: Node,
        period_s: float,
        pod_resources: PodResources | None,
        identities: PodIdentities | None,
    ) -> None:
        self._backend = backend
        self._queries = queries
        self._node = node
        self._period_s = period_s
        self._pod_resources = pod_resources
        self._identities = identities
        self._host_thread = HalThread("usage")
        self._reported: dict[str, str] = {}
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Event()
        self._waiting: list[threading.Event] = []

    def ask(self, wait_s: float) -> None:
        """From another thread: have it read unless that was done within the period; then wait.

        Not for longer than `wait_s`: what hangs keeps nobody waiting, and is read for the next one.
        """
        if not self._period_s or self._fresh(time.monotonic()):
            return
        with suppress(RuntimeError):  # the loop has ended
            done = threading.Event()
            self._loop.call_soon_threadsafe(self._wanted, done)
            done.wait(wait_s)

    def _wanted(self, done: threading.Event) -> None:
        self._waiting.append(done)
        self._turn.set()

    def _fresh(self, now_s: float) -> bool:
        """True for a reading that a scrape at the end of each period gets anew."""
        reading = self._node.view.reading
        return reading is not None and now_s - reading.at_s < _FRESH_SHARE * self._period_s

    async def run(self) -> None:
        """Read whenever it is asked for; with period 0, never."""
        try:
            while True:
                await self._turn.wait()
                self._turn.clear()
                now_s = time.monotonic()
                if self._queries.open and self._node.view.gpus and not self._fresh(now_s):
                    self._node.used(await self._read(now_s))
                waiting, self._waiting = self._waiting, []
                for done in waiting:
                    done.set()
        finally:
            self._host_thread.close()

    async def _read(self, started_s: float) -> Reading:
        unseen: dict[str, str] = {}
        view = self._node.view
        telemetry: dict[str, Telemetry] = {}
        processes: dict[str, Sequence[ComputeProcess]] = {}
        readings = await self._queries.call_gpus(
            [gpu.uuid for gpu in view.gpus], _GPU_DEADLINE_S, self._read_in_thread
        )
        for uuid, result in readings.items():
            if isinstance(result, HalError):
                # The monitor decides what a GPU that does not respond means.
                log.debug("no reading of GPU %s: %s", uuid, result, extra={"event": "no-reading"})
                continue
            telemetry[uuid], found = result
            if isinstance(found, HalError):
                unseen[PROCESSES] = str(found)
            else:
                processes[uuid] = found
        if not processes:
            unseen.setdefault(PROCESSES, "no GPU responds")
        holdings = await self._holdings(unseen)
        pods = await self._pods(processes, unseen)
        work = {
            uuid: [Work(uuid, one, pods.get(one.pid)) for one in found]
            for uuid, found in processes.items()
        }
        usage = usage_of(Seen(view.gpus, view.inventory, holdings, telemetry, work))
        self._log_changes(unseen)
        return Reading(
            at_s=started_s,
            took_s=time.monotonic() - started_s,
            period_s=self._period_s,
            driver=self._driver(),
            gpus=view.gpus,
            telemetry=MappingProxyType(telemetry),
            usage=usage,
            unseen=MappingProxyType(unseen),
        )

    def _driver(self) -> str:
        try:
            return self._backend.driver_version
        except HalError:
            return ""  # closed meanwhile

    def _read_in_thread(
        self, uuid: str
    ) -> tuple[Telemetry, Sequence[ComputeProcess] | NotSupported]:
        telemetry = self._backend.telemetry(uuid)
        try:
            return telemetry, self._backend.processes(uuid)
        except NotSupported as error:
            return telemetry, error

    async def _holdings(self, unseen: dict[str, str]) -> Sequence[Holding] | None:
        if self._pod_resources is None:
            unseen[HOLDINGS] = "switched off"
            return None
        try:
            return await self._host_thread.call(_HOST_DEADLINE_S, self._pod_resources.holdings)
        except (PodResourcesUnavailable, HalError) as error:
            unseen[HOLDINGS] = str(error)
            return None

    async def _pods(
        self, processes: Mapping[str, Sequence[ComputeProcess]], unseen: dict[str, str]
    ) -> Mapping[int, PodName | None]:
        if self._identities is None:
            unseen[PODS] = "switched off"
            return {}
        pids = frozenset(one.pid for found in processes.values() for one in found)
        if not pids:
            # Nothing shows whether they can be read now.
            unseen |= {what: why for what, why in self._reported.items() if what == PODS}
            return {}
        try:
            return await self._host_thread.call(_HOST_DEADLINE_S, self._identities.pods_of, pids)
        except (CgroupsUnreadable, HalError) as error:
            unseen[PODS] = str(error)
            return {}

    def _log_changes(self, unseen: Mapping[str, str]) -> None:
        """Log once what cannot be read, and once that it can again."""
        for what, why in unseen.items():
            if what not in self._reported:
                text = f"metrics will not show {_NAMES[what]}: {why}"
                log_fact(log, logging.INFO, "not-visible", text, what=what)
        for what in self._reported.keys() - unseen.keys():
            text = f"metrics show {_NAMES[what]} again"
            log_fact(log, logging.INFO, "visible", text, what=what)
        self._reported = dict(unseen)


def make_sampler(
    settings: Settings, backend: Backend, queries: HalQueries, node: Node, door: FrontDoor
) -> Sampler:
    daemon = settings.daemon
    pod_resources = identities = None
    if daemon.pod_metrics:
        socket = daemon.kubelet_dir / "pod-resources" / "kubelet.sock"
        pod_resources = PodResources(socket, _HOST_DEADLINE_S / 2, door.holdings)
        identities = PodIdentities(daemon.host_proc, daemon.pod_logs)
    return Sampler(backend, queries, node, daemon.metrics_interval, pod_resources, identities)


_NAMES = {
    HOLDINGS: "which pod holds which replica",
    PROCESSES: "the processes on the GPUs",
    PODS: "the pod of each process",
}
