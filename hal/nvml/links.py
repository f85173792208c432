"""How GPUs are connected: PCIe paths and direct NVLinks."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from hal.nvml.api import NvmlError
from hal.nvml.kernelfiles import canonical_bus_id
from hal.types import GpuState, Link, LinkKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hal.nvml.api import Handle, NvmlApi
    from hal.nvml.inventory import Snapshot

_MAX_NVLINKS: Final = 36

_KINDS: Final = {
    0: LinkKind.SAME_BOARD,
    10: LinkKind.SINGLE_SWITCH,
    20: LinkKind.MULTI_SWITCH,
    30: LinkKind.HOST_BRIDGE,
    40: LinkKind.SAME_CPU,
    50: LinkKind.CROSS_CPU,
}


def read_links(api: NvmlApi, snapshot: Snapshot) -> Mapping[tuple[str, str], Link]:
    """The link of each ordered pair of the GPUs that respond.

    A path that cannot be read counts as the farthest, an NVLink that cannot be read as absent.

    Raises:
        NvmlError: the driver does not respond: an incomplete matrix must not be kept.
    """
    gpus = [gpu for gpu in snapshot.gpus if gpu.state is GpuState.OK]
    remotes = {gpu.uuid: _remotes(api, snapshot.handles[gpu.uuid]) for gpu in gpus}
    links: dict[tuple[str, str], Link] = {}
    for one, other in itertools.combinations(gpus, 2):
        kind = _kind(api, snapshot.handles[one.uuid], snapshot.handles[other.uuid])
        # Both ends report the same links; one that cannot must not make the pair asymmetric.
        nvlinks = max(
            remotes[one.uuid].count(other.pci_bus_id), remotes[other.uuid].count(one.pci_bus_id)
        )
        link = Link(kind, nvlinks)
        links[one.uuid, other.uuid] = links[other.uuid, one.uuid] = link
    return links


def _kind(api: NvmlApi, one: Handle, other: Handle) -> LinkKind:
    try:
        return _KINDS.get(api.topology(one, other), LinkKind.CROSS_CPU)
    except NvmlError as err:
        if err.is_driver_failure:
            raise
        return LinkKind.CROSS_CPU


def _remotes(api: NvmlApi, device: Handle) -> list[str]:
    """The PCI addresses at the far ends of a GPU's links that are up."""
    remotes: list[str] = []
    for link in range(_MAX_NVLINKS):
        try:
            if api.nvlink_active(device, link):
                remotes.append(canonical_bus_id(api.nvlink_remote(device, link)))
        except NvmlError as err:
            if err.is_driver_failure:
                raise
    return remotes
