"""What pods hold, read where a decision needs it, and what indices of the configuration meant.

What follows from both is decided in `core.holdings` and `core.departures`.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from gpuplugin.core.holdings import moved, selected_by_index
from gpuplugin.core.usage import Holding, PodName
from gpuplugin.daemon.calls import HalThread
from gpuplugin.daemon.cluster.pods import PodResources, PodResourcesUnavailable
from gpuplugin.daemon.logs import log_fact
from gpuplugin.daemon.tasks import wait_period
from hal import GpuState, HalError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from gpuplugin.config.settings import Settings
    from gpuplugin.daemon.frontdoor import FrontDoor
    from gpuplugin.daemon.node import Node

_PERIOD_S = 15.0
_DEADLINE_S = 2.0
_CHECKPOINT = "kubelet_internal_checkpoint"
_SELECTION = ".gpuplugin-selection.json"
"""Hidden, so that the kubelet's plugin watcher passes it over."""

log = logging.getLogger(__name__)


class HoldingsWatch:
    """The task; `folder` is where it remembers what indices meant, across restarts."""

    def __init__(self, node: Node, settings: Settings, folder: Path, door: FrontDoor) -> None:
        daemon = settings.daemon
        socket = daemon.kubelet_dir / "pod-resources" / "kubelet.sock"
        self._pod_resources = (
            PodResources(socket, _DEADLINE_S / 2, door.holdings) if daemon.pod_metrics else None
        )
        self._door = door
        self._checkpoint = daemon.kubelet_dir / "device-plugins" / _CHECKPOINT
        self._node = node
        self._thread = HalThread("holdings")
        self._memory = folder / _SELECTION
        self._selected: Mapping[str, str] | None = None
        self._problem = ""

    async def run(self) -> None:
        """Read again what pods hold while something waits for the end of a pod."""
        try:
            while True:
                await wait_period(_PERIOD_S)
                view = self._node.view
                if view.withheld or any(gpu.state is GpuState.LOST for gpu in view.gpus):
                    await self.read()
                await self.remember_selection()
        finally:
            self._thread.close()

    async def read(self) -> None:
        """Tell the node what pods hold now; if that cannot be known it is what it was."""
        try:
            holdings = await self._thread.call(_DEADLINE_S, self._read)
        except (PodResourcesUnavailable, HalError) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                text = (
                    f"what pods hold is not known: {error}; a GPU that a pod holds may be offered "
                    "in another form"
                )
                log_fact(log, logging.INFO, "holdings-unknown", text)
            return
        self._problem = ""
        self._node.held(holdings)

    async def remember_selection(self) -> None:
        """Warn of an index that means another GPU than at the last start."""
        view = self._node.view
        if not view.gpus:
            return
        selected = selected_by_index(view.plan.inventory, view.gpus)
        if selected == self._selected:
            return
        try:
            texts = await self._thread.call(_DEADLINE_S, self._exchange, selected)
        except (OSError, HalError) as error:
            log.debug("%s: %s", self._memory, error, extra={"event": "selection-not-kept"})
            texts = ()
        self._selected = selected
        for text in texts:
            log_fact(log, logging.WARNING, "selection-moved", text)

    def _read(self) -> tuple[Holding, ...]:
        """In the thread."""
        why = "--pod-metrics is off"
        if self._pod_resources is not None:
            try:
                return self._pod_resources.holdings()
            except PodResourcesUnavailable as error:
                why = str(error)
        if (held := self._door.held()) is not None:
            return tuple(held)
        try:
            return tuple(_checkpoint_holdings(self._checkpoint.read_text("utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            raise PodResourcesUnavailable(f"{why}; {self._checkpoint}: {error}") from error

    def _exchange(self, selected: Mapping[str, str]) -> tuple[str, ...]:
        """In the thread: what moved since the file was written; it is written if it differs."""
        try:
            before = _texts(json.loads(self._memory.read_text("utf-8")))
        except (FileNotFoundError, ValueError, RecursionError):
            before = {}
        if before != selected:
            self._memory.write_text(json.dumps(dict(selected)), "utf-8")
        return moved(before, selected)


def _checkpoint_holdings(text: str) -> Iterator[Holding]:
    """The devices in the kubelet's checkpoint, by the UIDs of pods; raises ValueError."""
    try:
        for entry in json.loads(text)["Data"]["PodDeviceEntries"] or ():
            yield Holding(
                PodName("uid", str(entry["PodUID"])),
                str(entry["ContainerName"]),
                str(entry["ResourceName"]),
                tuple(str(one) for ids in (entry["DeviceIDs"] or {}).values() for one in ids),
            )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a checkpoint of a device manager: {error}") from error


def _texts(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {str(index): str(uuid) for index, uuid in value.items()}
