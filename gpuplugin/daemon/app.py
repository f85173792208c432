"""Puts the daemon together and runs it."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING

from gpuplugin.daemon.cluster.nodelabel import PART as LABEL_PART
from gpuplugin.daemon.control import ControlServer
from gpuplugin.daemon.hardware.monitor import Monitor
from gpuplugin.daemon.hardware.queries import HalQueries
from gpuplugin.daemon.healthnews import HealthNews
from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.daemon.http.server import HttpError, HttpServer
from gpuplugin.daemon.node import ConfigurationMisfit, Node
from gpuplugin.daemon.plans import (
    monitor_plan,
    node_plans,
    remove_unwanted_specs,
    warn_of_exposure,
)
from gpuplugin.daemon.preload import load_later
from gpuplugin.daemon.reload import Reloader
from gpuplugin.daemon.serving.endpoint import Surroundings
from gpuplugin.daemon.serving.endpoints import Endpoints
from gpuplugin.daemon.serving.sockets import KubeletDirs, remove_leftovers
from gpuplugin.daemon.status import Vitals
from gpuplugin.daemon.supervisor import Fatal, supervise
from gpuplugin.daemon.timers import tick
from gpuplugin.rpc import make_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuplugin.config.loaded import Loaded
    from gpuplugin.daemon.cluster.nodeconfig import NodeChoice
    from gpuplugin.daemon.hardware.sampler import Reading, Sampler
    from hal import Backend

HEARTBEAT_S = 2.0

log = logging.getLogger(__name__)


async def run(
    loaded: Loaded,
    load: Callable[[], Loaded],
    backend: Backend,
    version: str,
    choice: NodeChoice | None = None,
) -> int:
    """Run the daemon until SIGTERM or SIGINT; SIGHUP reads the configuration anew.

    `load` reads the configuration as it was read for `loaded`; `choice` is what chooses it, if
    there are several. The exit status is 0 after a signal, 1 after a fatal failure.
    """
    daemon = Daemon(loaded, load, backend, version, choice)
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
        log.error("%s", fatal, extra={"event": "fatal"})  # noqa: TRY400 - the text says it all
    return 1


class Daemon:
    """The whole plugin, without signals: for the command line, and for tests in process."""

    def __init__(
        self,
        loaded: Loaded,
        load: Callable[[], Loaded],
        backend: Backend,
        version: str,
        choice: NodeChoice | None = None,
    ) -> None:
        self._choice = choice
        self._loaded = loaded
        self._load = load
        self._backend = backend
        self.vitals = Vitals()
        self.metrics = Metrics(version, loaded.settings.daemon.backend)
        self._reloader: Reloader | None = None
        self._http: HttpServer | None = None
        self._version = version
        self._make_page: Callable[[], str] | None = None
        self._sampler: Sampler | None = None

    @property
    def port(self) -> int | None:
        """The port of /metrics, /health and /ready; None while nothing is listened on."""
        return None if self._http is None else self._http.port

    def reload(self) -> None:
        """Read the configuration anew, changed or not."""
        if self._reloader is not None:
            self._reloader.ask()

    async def run(self) -> None:
        """Run until cancelled.

        Raises:
            Fatal: it cannot go on; the text says why.
        """
        asyncio.get_running_loop().set_exception_handler(self._unforeseen)
        self.vitals.set("inventory", "starting", ok=False)
        address = self._loaded.settings.daemon.listen_address
        try:
            http = self._http = HttpServer(address, self.vitals, self.metrics, self._page)
        except HttpError as error:
            raise Fatal(str(error)) from error
        try:
            await self._serve()
        except ExceptionGroup as group:
            fatal, others = group.split(Fatal)
            if fatal is None or others is not None:
                raise
            raise _leaf(fatal) from None
        finally:
            self._http = None
            http.close()

    def _page(self) -> str | None:
        return self._make_page and self._make_page()

    def _page_of(self, node: Node, news: HealthNews) -> str:
        from gpuplugin.daemon.http.page.gather import PageSource  # when somebody looks
        from gpuplugin.daemon.http.page.html import page_html

        source = PageSource(
            self._version, self.vitals, node, news.record, self._reading, lambda: self._loaded
        )
        return page_html(source.view())

    def _reading(self) -> Reading | None:
        return None if self._sampler is None else self._sampler.reading()

    async def _sample(self, queries: HalQueries, node: Node, news: HealthNews) -> None:
        """Read what GPUs do, from the end of the first period on: the kubelet is served first."""
        settings = self._loaded.settings
        await tick(settings.daemon.metrics_interval)
        if self._sampler is None:
            from gpuplugin.daemon.hardware.sampler import make_sampler
            from gpuplugin.daemon.http.usagemetrics import UsageCollector

            self._sampler = make_sampler(settings, self._backend, queries, node)
            self.metrics.sources.append(UsageCollector(self._reading, node, news.record))
        await self._sampler.run()

    def _unforeseen(self, _loop: asyncio.AbstractEventLoop, what: dict[str, object]) -> None:
        """A callback or a forgotten task failed: nobody else would tell of it."""
        self.metrics.task_restarts.labels(task="callback").inc()
        error = what.get("exception")
        log.error(
            "%s",
            what.get("message", "a callback failed"),
            exc_info=error if isinstance(error, BaseException) else None,
            extra={"event": "unforeseen"},
        )

    async def _serve(self) -> None:
        settings = self._loaded.settings
        vitals, metrics = self.vitals, self.metrics
        dirs = KubeletDirs(settings.daemon.kubelet_dir, settings.daemon.kubelet_socket)
        for folder in (dirs.plugin_watcher, dirs.device_plugins):
            for path in remove_leftovers(folder):
                log.info("removed the old socket %s", path, extra={"event": "leftover-removed"})
        try:
            plans = node_plans(settings)
            warn_of_exposure(settings)
            remove_unwanted_specs(settings)
        except ConfigurationMisfit as misfit:
            raise Fatal(str(misfit)) from misfit
        reporter = None
        if settings.daemon.kubernetes_reports:
            from gpuplugin.daemon.cluster.nodereports import make_reporter

            reporter = make_reporter(settings, metrics)
        news = HealthNews(metrics, reporter.report if reporter else None)
        node = Node(plans, vitals, metrics, news)
        queries = HalQueries()
        self._make_page = lambda: self._page_of(node, news)
        monitor = Monitor(
            self._backend,
            queries,
            node,
            vitals,
            metrics,
            plan=lambda: monitor_plan(self._loaded.settings),
            fail_on_init_error=settings.flags.fail_on_init_error,
            on_open=lambda: self._look_again(node),
        )
        surroundings = Surroundings(
            dirs=dirs,
            registration=settings.daemon.way_of_registration,
            engine=make_engine(settings.daemon.rpc_engine),
            vitals=vitals,
            metrics=metrics,
        )
        endpoints = Endpoints(node, surroundings)
        self._reloader = Reloader(
            self._loaded,
            self._load,
            lambda loaded: self._adopt(loaded, node),
            vitals,
            metrics,
            self._choice.folder if self._choice else None,
        )
        choice = self._choice
        control = ControlServer(dirs.of(settings.daemon.way_of_registration), node, vitals)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_heartbeat(vitals), name="heartbeat")
            tasks.create_task(load_later(), name="loader")
            for name, task in (
                ("monitor", monitor.run),
                ("endpoints", endpoints.run),
                ("reload", self._reloader.run),
                ("control", control.run),
                ("sampler", lambda: self._sample(queries, node, news)),
                *([("node-reports", reporter.run)] if reporter else ()),
                *([("node-label", lambda: self._follow_label(choice))] if choice else ()),
            ):
                metrics.task_restarts.labels(task=name)  # seen from the first restart on
                tasks.create_task(supervise(name, task, vitals, metrics), name=name)

    async def _follow_label(self, choice: NodeChoice) -> None:
        await choice.watch.run(self.reload, lambda text, ok: self._tell_of_label(text, ok=ok))

    def _tell_of_label(self, text: str, *, ok: bool) -> None:
        if self.vitals.set(LABEL_PART, text, ok=ok):
            log.log(
                logging.INFO if ok else logging.ERROR, "%s", text, extra={"event": "node-label"}
            )

    def _look_again(self, node: Node) -> None:
        """A driver that comes late brings its files and device nodes with it."""
        try:
            node.replanned(node_plans(self._loaded.settings))
        except ConfigurationMisfit as misfit:
            log.error("%s", misfit, extra={"event": "configuration-misfit"})  # noqa: TRY400

    def _adopt(self, loaded: Loaded, node: Node) -> None:
        """Put a configuration in force; what only counts at start is told, not applied."""
        node.configure(node_plans(loaded.settings))
        remove_unwanted_specs(loaded.settings)
        before, now = self._loaded.settings.flags, loaded.settings.flags
        roots = (before.nvidia_driver_root, before.plugin.container_driver_root)
        if roots != (now.nvidia_driver_root, now.plugin.container_driver_root):
            log.warning(
                "the driver's root counts from the next start on",
                extra={"event": "config-needs-restart"},
            )
        self._loaded = loaded


def _leaf(group: ExceptionGroup[Fatal]) -> Fatal:
    first = group.exceptions[0]
    return _leaf(first) if isinstance(first, ExceptionGroup) else first


async def _heartbeat(vitals: Vitals) -> None:
    while True:
        vitals.beat()
        await tick(HEARTBEAT_S)


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
