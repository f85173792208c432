"""Keeps the node's labels those of its GPUs: `core.gpulabels` makes them, a store keeps them.

What is written stays: nothing is removed while the driver is away, or when the plugin stops.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gpuplugin.core.gpulabels import NOT_WRITTEN, NodeFacts, differences, gpu_labels
from gpuplugin.core.pacing import Backoff
from gpuplugin.daemon.calls import HalThread
from gpuplugin.daemon.cluster.eventqueue import ReportFailed
from gpuplugin.daemon.logs import log_fact
from gpuplugin.daemon.tasks import Fatal
from gpuplugin.daemon.wholefiles import write_whole
from hal import HalError, HalHung

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gpuplugin.config.settings import Settings
    from gpuplugin.core.nodeview import NodeView
    from gpuplugin.daemon.status import StatusBoard
    from hal import Backend

SETTLE_S = 1.0
"""Changes of so long are written together."""
GONE_S = 60.0
"""A driver may list its first GPU late: labels go when there was none for so long."""
LOOK_S = 600.0
"""How often what is stored is compared with what it should be."""
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 300.0
DEADLINE_S = 30.0
COMPONENT = "gpu-labels"

log = logging.getLogger(__name__)


class LabelStore(Protocol):
    def sync(self, labels: Mapping[str, str]) -> int:
        """Make the stored labels these, writing what differs; how many did. Blocks.

        Raises `ReportFailed`, and nothing else.
        """


class FileStore:
    """A file of features.d, from which NFD's worker labels the node."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def sync(self, labels: Mapping[str, str]) -> int:
        """See `LabelStore`; the file is written whole."""
        try:
            stored = self._path.read_text("utf-8", errors="replace")
        except OSError:
            stored = ""
        text = "".join(f"{key}={value}\n" for key, value in labels.items())
        if stored == text:
            return 0
        try:
            write_whole(self._path, text, 0o644)
        except OSError as error:
            reason = (
                f"{error}: mount the host's folder {self._path.parent} where the plugin's user may "
                "write, or choose another flags.gfd.outputFile (docs/node-labels.md)"
            )
            raise ReportFailed(reason, retryable=True) from error
        before = dict(line.split("=", 1) for line in stored.splitlines() if "=" in line)
        return len(differences(before, labels))


class GpuLabeler:
    """The task. `follow` and `run` are of one event loop."""

    def __init__(
        self,
        store: LabelStore,
        backend: Backend,
        view: Callable[[], NodeView],
        settings: Callable[[], Settings],
        status: StatusBoard,
    ) -> None:
        self._store = store
        self._backend = backend
        self._view = view
        self._settings = settings
        self._status = status
        self._thread = HalThread(COMPONENT)
        self._wake = asyncio.Event()
        self._started = int(time.time())
        self._backoff = Backoff(FIRST_RETRY_S, LAST_RETRY_S)
        self._written: Mapping[str, str] | None = None
        self._written_s = 0.0
        self._problem = ""

    def follow(self) -> None:
        """The node's view is another one; never blocks."""
        self._wake.set()

    async def run(self) -> None:
        wait_s: float | None = None
        try:
            while True:
                await self._woken(wait_s)
                wait_s = None
                view = self._view()
                if not view.listed or view.board.blind:
                    continue  # the driver is away: what is written stays
                if view.gpus:
                    await asyncio.sleep(SETTLE_S)
                elif await self._woken(GONE_S):
                    self._wake.set()
                    continue
                self._wake.clear()
                wait_s = await self._turn()
        finally:
            self._thread.close()

    async def _woken(self, timeout_s: float | None) -> bool:
        """Wait for another view, or for so long; whether there is one."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    async def _turn(self) -> float:
        """Write the labels if they are others; returns in how many seconds to look again."""
        view, now_s = self._view(), time.monotonic()
        try:
            labels = await self._thread.call(DEADLINE_S, self._labels, view)
            if labels != self._written or now_s - self._written_s >= LOOK_S:
                changed = await self._thread.call(DEADLINE_S, self._store.sync, labels)
                self._accepted(labels, changed)
        except HalHung:
            text = f"no response within {DEADLINE_S:g} s"
            return self._failed(ReportFailed(text, retryable=True))
        except HalError as error:
            log.debug("labels stay as they are: %s", error)
            return self._backoff.next_s()
        except ReportFailed as error:
            return self._failed(error)
        return LOOK_S

    def _labels(self, view: NodeView) -> Mapping[str, str]:
        """In the thread: it reads a file, and what the driver's connection knows."""
        settings = self._settings()
        gfd = settings.flags.gfd
        facts = NodeFacts(
            driver_version=self._backend.driver_version,
            cuda_version=self._backend.cuda_version,
            machine=_machine(gfd.machine_type_file, settings.daemon.sysfs_root),
            timestamp=None if gfd.no_timestamp else self._started,
        )
        return gpu_labels(view.gpus, view.plan.inventory, facts)

    def _accepted(self, labels: Mapping[str, str], changed: int) -> None:
        self._backoff.reset()
        self._written, self._written_s = labels, time.monotonic()
        text = f"{len(labels)} labels are written"
        self._status.set(COMPONENT, text, ok=True)
        if changed or self._problem:
            log_fact(log, logging.INFO, "gpu-labels", f"{text}, {changed} of them anew")
        self._problem = ""

    def _failed(self, error: ReportFailed) -> float:
        self._written = None
        text = f"{NOT_WRITTEN}: {error}"
        # A node whose labels are old serves pods as well as any: it stays ready.
        self._status.set(COMPONENT, text, ok=True)
        if text != self._problem:
            log_fact(log, logging.WARNING, "gpu-labels-failed", text)
        self._problem = text
        return max(self._backoff.next_s(), error.wait_s)


def _machine(file: str, sysfs_root: Path) -> str:
    if not file:
        return ""
    path = Path(file)
    if path.is_relative_to("/sys"):
        path = sysfs_root / path.relative_to("/sys")
    try:
        return path.read_text("utf-8", errors="replace").strip()
    except OSError as error:
        log.debug("the machine's type is not known: %s", error)
        return ""


def make_store(settings: Settings) -> LabelStore | None:
    """None if no labels are wanted; raises `Fatal` without a client library or a cluster."""
    way, node = settings.daemon.node_labels, settings.daemon.node_name
    if way == "off":
        return None
    if way == "file":
        return FileStore(Path(settings.flags.gfd.output_file))
    try:
        from gpuplugin.daemon.cluster.kubeapi import NoCluster
        from gpuplugin.daemon.cluster.labelstores import FeatureStore, NodeStore
    except ImportError as error:
        raise Fatal(
            f"--node-labels {way} needs a Kubernetes client, which is not installed "
            f"({error}): pip install 'gpuplugin[kubernetes]'"
        ) from error
    try:
        return NodeStore(node) if way == "node" else FeatureStore(node)
    except NoCluster as error:
        raise Fatal(f"--node-labels {way}: {error}") from error
