"""Puts the daemon together and runs it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuplugin.core.node import ConfigurationMisfit
from gpuplugin.daemon.calls import HalQueries
from gpuplugin.daemon.cluster.gpulabels import COMPONENT as GPU_LABELS
from gpuplugin.daemon.cluster.gpulabels import GpuLabeler, make_store
from gpuplugin.daemon.cluster.holdings import HoldingsWatch
from gpuplugin.daemon.cluster.nodeconfig import COMPONENT as LABEL_COMPONENT
from gpuplugin.daemon.cluster.nodereports import make_reporter
from gpuplugin.daemon.control import ControlServer
from gpuplugin.daemon.files import FileWatch
from gpuplugin.daemon.frontdoor import DoorContext, make_front_door
from gpuplugin.daemon.hardware.monitor import Monitor
from gpuplugin.daemon.hardware.sampler import make_sampler
from gpuplugin.daemon.hardware.timeslices import TimeSlicer
from gpuplugin.daemon.healthlog import HealthLog
from gpuplugin.daemon.http.exposition import families
from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.daemon.http.page import page_html
from gpuplugin.daemon.http.pageview import PageView, page_view
from gpuplugin.daemon.http.server import HttpError, HttpServer
from gpuplugin.daemon.logs import log_fact
from gpuplugin.daemon.node import Node
from gpuplugin.daemon.plans import node_plan, remove_unwanted_specs, warn_of_exposure, watch_plan
from gpuplugin.daemon.reload import Reloader
from gpuplugin.daemon.serving.sockets import KubeletDirs, remove_leftovers
from gpuplugin.daemon.status import StatusBoard
from gpuplugin.daemon.tasks import Fatal, supervise, wait_period

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gpuplugin.config.loaded import Loaded
    from gpuplugin.daemon.cluster.nodeconfig import NodeChoice
    from gpuplugin.daemon.cluster.nodereports import NodeReporter
    from gpuplugin.daemon.frontdoor import FrontDoor
    from gpuplugin.daemon.hardware.sampler import Sampler
    from hal import Backend

HEARTBEAT_S = 5.0
"""As often as GPUs are looked at, so that both take one wake-up."""

USAGE_WAIT_S = 1.0
"""How long a scrape waits for a reading; one that takes longer is for the next scrape."""

log = logging.getLogger(__name__)


async def run(
    loaded: Loaded,
    load: Callable[[], Loaded],
    backend: Backend,
    version: str,
    choice: NodeChoice | None = None,
    on_http: Callable[[int], object] = lambda _port: None,
) -> int:
    """Run the daemon until SIGTERM or SIGINT; SIGHUP reads the configuration anew.

    `load` reads the configuration as it was read for `loaded`; `choice` is what chooses it, if
    there are several. `on_http` is called with the port once the HTTP server listens. The exit
    status is 0 after a signal, 1 after a fatal failure.
    """
    daemon = Daemon(loaded, load, backend, version, choice, on_http)
    work = asyncio.create_task(daemon.run(), name="daemon")
    stopped_by = _on_signals(work, daemon.reload)
    try:
        await work
    except asyncio.CancelledError:
        if not stopped_by:
            raise
        log.info("stopped", extra={"event": "stopped"})
        return 0
    except Fatal as fatal:
        log_fact(log, logging.ERROR, "fatal", str(fatal))
    return 1


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the daemon's tasks have in common."""

    node: Node
    door: FrontDoor
    files: FileWatch
    queries: HalQueries
    slicer: TimeSlicer
    reporter: NodeReporter | None
    labeler: GpuLabeler | None


class Daemon:
    """The whole plugin, without signals: for the command line, and for tests in process."""

    def __init__(
        self,
        loaded: Loaded,
        load: Callable[[], Loaded],
        backend: Backend,
        version: str,
        choice: NodeChoice | None = None,
        on_http: Callable[[int], object] = lambda _port: None,
    ) -> None:
        self._choice = choice
        self._on_http = on_http
        self._loaded = loaded
        self._load = load
        self._backend = backend
        self._version = version
        self.status = StatusBoard()
        self.metrics = Metrics(version, loaded.settings.daemon.backend)
        self._reloader: Reloader | None = None
        self._holdings: HoldingsWatch | None = None
        self._http: HttpServer | None = None
        self._sampler: Sampler | None = None
        self._planning = asyncio.Lock()
        """While a plan is made: one of the settings before must not come after one of the new."""

    @property
    def port(self) -> int | None:
        """The port of /metrics, /health and /ready; None while nothing is listened on."""
        return None if self._http is None else self._http.port

    def reload(self) -> None:
        if self._reloader is not None:
            self._reloader.request()

    async def run(self) -> None:
        """Run until cancelled; raises `Fatal` with the reason if it cannot go on."""
        asyncio.get_running_loop().set_exception_handler(self._unforeseen)
        settings = self._loaded.settings
        self.status.set("inventory", "starting", ok=False)
        reporter, store = make_reporter(settings, self.metrics), make_store(settings)
        health_log = HealthLog(self.metrics, reporter.report if reporter else None)
        try:
            plan = await asyncio.to_thread(node_plan, settings)
        except ConfigurationMisfit as misfit:
            raise Fatal(str(misfit)) from misfit
        with (
            closing(FileWatch()) as files,
            closing(Node(plan, self.status, health_log)) as node,
        ):
            queries = HalQueries(self._backend)
            dra = settings.daemon.allocation == "dra"
            slicer = TimeSlicer(self._backend, queries, node, self.status, kept_at_stop=dra)
            door = make_front_door(
                settings,
                DoorContext(
                    self.status,
                    self.metrics,
                    files,
                    lambda: self._backend.driver_version,
                    slicer.claim,
                ),
            )
            node.followers.append(lambda: door.publish(node.view))
            labeler = None
            if store is not None:
                labeler = GpuLabeler(
                    store,
                    self._backend,
                    lambda: node.view,
                    lambda: self._loaded.settings,
                    self.status,
                )
                node.followers.append(labeler.follow)
            await self._run(_Parts(node, door, files, queries, slicer, reporter, labeler))

    async def _run(self, parts: _Parts) -> None:
        daemon = self._loaded.settings.daemon
        dcgm_host = (daemon.node_name or socket.gethostname()) if daemon.dcgm_metrics else None
        try:
            http = self._http = HttpServer(
                daemon.listen_address,
                self.status,
                lambda: families(self.metrics, parts.node.view, dcgm_host),
                lambda: page_html(self._page(parts)),
                self._read_usage,
            )
        except HttpError as error:
            raise Fatal(str(error)) from error
        self._on_http(http.port)
        try:
            await self._serve(parts)
        except ExceptionGroup as group:
            fatal, others = group.split(Fatal)
            if fatal is None or others is not None:
                raise
            raise _leaf(fatal) from None
        finally:
            self._http = None
            http.close()

    def _page(self, parts: _Parts) -> PageView:
        """What the status page shows, in a thread: from values that never change."""
        return page_view(
            self._version,
            self.status.readiness(),
            parts.node.view,
            parts.door.calls(),
            self._loaded,
        )

    def _page_now(self, parts: _Parts) -> PageView:
        self._read_usage()
        return self._page(parts)

    def _read_usage(self) -> None:
        """In a thread of who asks: metrics and page show what was read within the period."""
        if (sampler := self._sampler) is not None:
            sampler.ask(USAGE_WAIT_S)

    def _unforeseen(self, _loop: asyncio.AbstractEventLoop, what: dict[str, object]) -> None:
        """A callback or an unawaited task failed: nothing else would report it."""
        self.metrics.task_restarts.labels(task="callback").inc()
        error = what.get("exception")
        log.error(
            "%s",
            what.get("message", "a callback failed"),
            exc_info=error if isinstance(error, BaseException) else None,
            extra={"event": "unforeseen"},
        )

    async def _serve(self, parts: _Parts) -> None:
        settings = self._loaded.settings
        node, files, slicer = parts.node, parts.files, parts.slicer
        reporter, labeler = parts.reporter, parts.labeler
        status, metrics, choice = self.status, self.metrics, self._choice
        dirs = KubeletDirs(settings.daemon.kubelet_dir, settings.daemon.kubelet_socket)
        for folder in (dirs.plugin_watcher, dirs.device_plugins):
            for path in remove_leftovers(folder):
                log.info("removed the old socket %s", path, extra={"event": "leftover-removed"})
        warn_of_exposure(settings)
        await asyncio.to_thread(remove_unwanted_specs, settings)
        folder = dirs.of(settings.daemon.way_of_registration)
        self._holdings = holdings = HoldingsWatch(node, settings, folder, parts.door)

        async def prepare() -> None:
            await self._prepare(node)
            slicer.reopened()

        monitor = Monitor(
            self._backend,
            parts.queries,
            node,
            status,
            metrics,
            plan=lambda: watch_plan(self._loaded.settings),
            fail_on_init_error=settings.flags.fail_on_init_error,
            on_open=prepare,
            on_end=slicer.stop,
        )
        sampler = self._sampler = make_sampler(
            settings, self._backend, parts.queries, node, parts.door
        )
        self._reloader = Reloader(
            self._loaded,
            self._load,
            lambda loaded: self._adopt(loaded, node, monitor),
            status,
            metrics,
            choice.folder if choice else None,
            files,
        )
        control = ControlServer(
            folder,
            node,
            status,
            files,
            lambda: self._page_now(parts),
            self._read_holdings,
            self._about,
        )
        async with asyncio.TaskGroup() as tasks:
            supervisors: dict[str, asyncio.Task[None]] = {}
            for name, task in (
                ("heartbeat", lambda: _heartbeat(status, supervisors)),
                ("monitor", monitor.run),
                ("endpoints", parts.door.run),
                ("reload", self._reloader.run),
                ("control", control.run),
                ("sampler", sampler.run),
                ("time-slices", slicer.run),
                ("holdings", holdings.run),
                *([("node-reports", reporter.run)] if reporter else ()),
                *([(GPU_LABELS, labeler.run)] if labeler else ()),
                *(
                    [("node-label", lambda: choice.watch.run(self.reload, self._show_label))]
                    if choice
                    else ()
                ),
            ):
                metrics.task_restarts.labels(task=name)  # seen from the first restart on
                supervisor = supervise(name, task, status, metrics)
                supervisors[name] = tasks.create_task(supervisor, name=f"supervisor of {name}")

    def _about(self) -> dict[str, object]:
        """What the control socket tells the doctor, so that it judges this node and no other."""
        loaded = self._loaded
        return {"config": loaded.effective, "config_source": loaded.source}

    def _show_label(self, text: str, ok: bool) -> None:
        if self.status.set(LABEL_COMPONENT, text, ok=ok):
            log_fact(log, logging.INFO if ok else logging.ERROR, "node-label", text)

    async def _prepare(self, node: Node) -> None:
        """Before GPUs are published: what pods hold, and what the driver has brought with it.

        A driver that is loaded late brings its files and device nodes.
        """
        await self._read_holdings()
        try:
            async with self._planning:
                node.replan(await asyncio.to_thread(node_plan, self._loaded.settings))
        except ConfigurationMisfit as misfit:
            log_fact(log, logging.ERROR, "configuration-misfit", str(misfit))

    async def _read_holdings(self) -> None:
        if self._holdings is not None:
            await self._holdings.read()

    async def _adopt(self, loaded: Loaded, node: Node, monitor: Monitor) -> None:
        """Put a configuration in force; what needs a restart is logged, not applied."""
        await self._read_holdings()
        before, now = self._loaded.settings.flags, loaded.settings.flags
        async with self._planning:
            await node.configure(await asyncio.to_thread(node_plan, loaded.settings))
            self._loaded = loaded
        monitor.replanned()
        await asyncio.to_thread(remove_unwanted_specs, loaded.settings)
        roots = (before.nvidia_driver_root, before.plugin.container_driver_root)
        if roots != (now.nvidia_driver_root, now.plugin.container_driver_root):
            text = "a change of the driver root takes effect after a restart"
            log_fact(log, logging.WARNING, "config-needs-restart", text)


def _leaf(group: ExceptionGroup[Fatal]) -> Fatal:
    first = group.exceptions[0]
    return _leaf(first) if isinstance(first, ExceptionGroup) else first


async def _heartbeat(status: StatusBoard, tasks: Mapping[str, asyncio.Task[None]]) -> None:
    """Show that the event loop turns, and that no task has ended for good."""
    while True:
        ended = [name for name, task in tasks.items() if task.done()]
        for name in ended:
            status.set(f"task:{name}", "ended; restart the plugin", ok=False)
        status.beat(alive=not ended)
        await wait_period(HEARTBEAT_S)


def _on_signals(work: asyncio.Task[None], reload: Callable[[], None]) -> list[str]:
    """Cancel the work on SIGTERM or SIGINT, whose name is then in the list; reload on SIGHUP."""
    received: list[str] = []
    loop = asyncio.get_running_loop()

    def stop(name: str) -> None:
        log.info("%s: draining", name, extra={"event": "signal", "signal": name})
        received.append(name)
        work.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    loop.add_signal_handler(signal.SIGHUP, reload)
    return received
