"""Puts the daemon together and runs it until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING

from gpuplugin.daemon.endpoint import Surroundings
from gpuplugin.daemon.endpoints import Endpoints
from gpuplugin.daemon.http import HttpError, HttpServer
from gpuplugin.daemon.metrics import Metrics
from gpuplugin.daemon.monitor import Monitor
from gpuplugin.daemon.node import Node
from gpuplugin.daemon.sockets import KubeletDirs, remove_leftovers
from gpuplugin.daemon.supervisor import Fatal, supervise
from gpuplugin.daemon.vitals import Vitals
from gpuplugin.kubelet.engine_grpcio import GrpcioEngine

if TYPE_CHECKING:
    from gpuplugin.config.schema import Settings
    from hal import Backend

HEARTBEAT_S = 1.0

log = logging.getLogger(__name__)


async def run(settings: Settings, backend: Backend, version: str) -> int:
    """Run the daemon; the exit status is 0 after a signal, 1 after a fatal failure."""
    vitals = Vitals()
    metrics = Metrics()
    metrics.build.info({"version": version, "backend": settings.daemon.backend})
    try:
        http = HttpServer(settings.daemon.listen_address, vitals, metrics)
    except HttpError as error:
        log.error(str(error), extra={"event": "fatal"})  # noqa: TRY400 - the text says it all
        return 1
    work = asyncio.create_task(_work(settings, backend, vitals, metrics), name="work")
    stop = _on_signals(work)
    try:
        await work
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        log.info("stopped", extra={"event": "stopped"})
        return 0
    except ExceptionGroup as group:
        fatal, others = group.split(Fatal)
        if others is not None or fatal is None:
            raise
        for failure in fatal.exceptions:
            log.error("%s", failure, extra={"event": "fatal"})  # noqa: TRY400 - as above
    finally:
        http.close()
    return 1


async def _work(settings: Settings, backend: Backend, vitals: Vitals, metrics: Metrics) -> None:
    dirs = KubeletDirs(settings.daemon.kubelet_dir)
    for folder in (dirs.plugin_watcher, dirs.device_plugins):
        for path in remove_leftovers(folder):
            log.info("removed the old socket %s", path, extra={"event": "leftover-removed"})
    node = Node(settings.time_slicing(), settings.health_policy(), vitals, metrics)
    monitor = Monitor(
        backend,
        node,
        vitals,
        metrics,
        probe_interval_s=settings.health.probe_interval,
        fail_on_init_error=settings.flags.fail_on_init_error,
    )
    surroundings = Surroundings(
        dirs=dirs,
        registration=settings.daemon.registration,
        engine=GrpcioEngine(),
        vitals=vitals,
        metrics=metrics,
    )
    endpoints = Endpoints(node, surroundings)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_heartbeat(vitals), name="heartbeat")
        tasks.create_task(supervise("monitor", monitor.run, vitals, metrics), name="monitor")
        tasks.create_task(supervise("endpoints", endpoints.run, vitals, metrics), name="endpoints")


async def _heartbeat(vitals: Vitals) -> None:
    while True:
        vitals.beat()
        await asyncio.sleep(HEARTBEAT_S)


def _on_signals(work: asyncio.Task[None]) -> asyncio.Event:
    """Cancel the work on SIGTERM or SIGINT; the event tells that it was a signal."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(name: str) -> None:
        log.info("%s: draining", name, extra={"event": "signal", "signal": name})
        stop.set()
        work.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
    return stop
