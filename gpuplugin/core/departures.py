"""GPUs that are gone: how long they stay listed, and which were forgotten. Pure.

A GPU that is gone stays listed as lost, since a pod may hold it. It leaves the list when a person
says so, or by itself after long, if the kubelet says that no pod holds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.core.holdings import holders
from hal import GpuState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from gpuplugin.core.usage import Holding
    from hal import Gpu

REPLACED_S = 3600.0
"""A GPU that is gone for so long and has a successor in its place leaves the list by itself."""
GONE_S = 7 * 24 * 3600.0
"""As `REPLACED_S`, for a GPU without a successor: long enough for a person to have seen it."""


MAX_GONE = 64
"""Of more, those that are gone for longest leave the list: more than a node has, and than a pod
can hold. A driver that names ever new GPUs would make the list grow for ever."""


class CannotForget(Exception):
    """A GPU cannot leave the list: it responds, or a pod holds it."""


class Departures:
    """Since when GPUs are gone, and those that were forgotten; not safe for threads."""

    def __init__(self) -> None:
        self._gone_s: dict[str, float] = {}
        self._forgotten: set[str] = set()

    def listed(self, gpus: Iterable[Gpu]) -> dict[str, Gpu]:
        """By UUID, without those that were forgotten: backends go on to list them as lost."""
        found = {
            gpu.uuid: gpu
            for gpu in gpus
            if gpu.state is GpuState.OK or gpu.uuid not in self._forgotten
        }
        self._forgotten -= found.keys()
        return found

    def due(
        self, gpus: Mapping[str, Gpu], holdings: Iterable[Holding] | None, now_s: float
    ) -> Iterator[tuple[str, str]]:
        """GPUs that may be forgotten now, each with the reason; none while holdings are unknown."""
        gone = {uuid for uuid, gpu in gpus.items() if gpu.state is GpuState.LOST}
        self._gone_s = {uuid: self._gone_s.get(uuid, now_s) for uuid in gone}
        by_age = sorted(gone, key=lambda uuid: (self._gone_s[uuid], uuid))
        for uuid in by_age[: max(0, len(gone) - MAX_GONE)]:
            if not holders(gpus[uuid], holdings or ()):
                yield uuid, f"{len(gone)} GPUs are gone, of which {MAX_GONE} stay listed"
                gone.discard(uuid)
        if holdings is None:
            return
        taken = {gpu.pci_bus_id for uuid, gpu in gpus.items() if uuid not in gone}
        for uuid in sorted(gone):
            replaced = gpus[uuid].pci_bus_id in taken
            gone_s = now_s - self._gone_s[uuid]
            if gone_s >= (REPLACED_S if replaced else GONE_S) and not holders(gpus[uuid], holdings):
                where = "another GPU has its place" if replaced else "nothing has its place"
                yield uuid, f"it is gone for {gone_s / 3600:.0f} h, and {where}"

    def forget(self, gpu: Gpu, holdings: Iterable[Holding]) -> None:
        """List it no longer unless it responds; raises `CannotForget`."""
        if gpu.state is not GpuState.LOST:
            raise CannotForget(
                f"GPU {gpu.uuid} responds; remove it from the node, or leave it out by gpus.exclude"
            )
        if pods := holders(gpu, holdings):
            raise CannotForget(
                f"GPU {gpu.uuid} is held by {', '.join(pods)}; delete the pods first"
            )
        self._forgotten.add(gpu.uuid)
