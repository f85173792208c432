"""Made-up GPUs, a plugin that serves them, and requests for their devices."""

from __future__ import annotations

from random import Random
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from gpuplugin.core.inventory import GPU_RESOURCE, Plan, build_inventory
from gpuplugin.core.sharing import SharedResource, TimeSlicing
from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.kubelet.deviceplugin import DevicePlugin
from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.kubelet.snapshot import ServingPlan, snapshot_of
from hal import Gpu, Link, LinkKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Topology: TypeAlias = Literal["nvlink", "pcie", "random"]
TOPOLOGIES: tuple[Topology, ...] = ("nvlink", "pcie", "random")

_CUBE = 8
"""GPUs of one hybrid cube mesh, as in a DGX-1."""


def plugin_for(gpus: int, replicas: int, topology: Topology | None = None) -> DevicePlugin:
    """The handlers for so many GPUs, each as so many replicas; the list is published.

    Choices are counted as in the daemon.
    """
    shared = (SharedResource(GPU_RESOURCE, replicas),) if replicas > 1 else ()
    inventory = build_inventory(made_up_gpus(gpus), Plan(TimeSlicing(shared)))
    links = links_of(gpus, topology) if topology else {}
    snapshot = snapshot_of(inventory.resources[0], ServingPlan(links=MappingProxyType(links)))
    plugin = DevicePlugin(snapshot, Metrics().choices_of(GPU_RESOURCE))
    plugin.update(snapshot, lambda _gpu, _mig: True)
    return plugin


def made_up_gpus(count: int) -> list[Gpu]:
    return [
        Gpu(
            uuid=uuid_of(index),
            index=index,
            minor=index,
            pci_bus_id=f"00000000:{index * 8 + 7:02X}:00.0",
            numa_node=index * 2 // count,
            product="NVIDIA H100 80GB HBM3",
            memory_bytes=80 << 30,
            compute_capability=(9, 0),
        )
        for index in range(count)
    ]


def uuid_of(index: int) -> str:
    digits = f"{Random(index).getrandbits(128):032x}"
    return f"GPU-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def links_of(gpus: int, topology: Topology) -> dict[tuple[str, str], Link]:
    """The links of a topology, both ways round."""
    chance = Random(gpus)
    found = {}
    for one in range(gpus):
        for other in range(one):
            link = _link(one, other, topology, chance)
            found[uuid_of(one), uuid_of(other)] = found[uuid_of(other), uuid_of(one)] = link
    return found


def allocate_request(device_ids: Iterable[str]) -> bytes:
    container = pb.ContainerAllocateRequest(devices_ids=device_ids)
    return pb.AllocateRequest(container_requests=[container]).SerializeToString()


def prefer_request(available: Sequence[str], size: int) -> bytes:
    container = pb.ContainerPreferredAllocationRequest(
        available_deviceIDs=available, allocation_size=size
    )
    return pb.PreferredAllocationRequest(container_requests=[container]).SerializeToString()


def healthy_ids(device_list: bytes) -> list[str]:
    found = pb.ListAndWatchResponse.FromString(device_list).devices
    return [device.ID for device in found if device.health == "Healthy"]


def _link(one: int, other: int, topology: Topology, chance: Random) -> Link:
    if topology == "random":
        return Link(chance.choice(list(LinkKind)), chance.choice((0, 0, 0, 1, 2, 4)))
    return Link(_pcie(one, other), _cube_links(one, other) if topology == "nvlink" else 0)


def _pcie(one: int, other: int) -> LinkKind:
    """Two GPUs behind each switch, four at each host bridge, eight at each CPU."""
    for size, kind in (
        (2, LinkKind.SINGLE_SWITCH),
        (4, LinkKind.HOST_BRIDGE),
        (8, LinkKind.SAME_CPU),
    ):
        if one // size == other // size:
            return kind
    return LinkKind.CROSS_CPU


def _cube_links(one: int, other: int) -> int:
    """NVLinks of a hybrid cube mesh: within each four, and each to its partner of the other four.

    Each GPU has six, as a V100 in a DGX-1 has, if not to quite the same others. Two meshes are not
    linked.
    """
    if one // _CUBE != other // _CUBE:
        return 0
    one, other = one % _CUBE, other % _CUBE
    if one // 4 == other // 4:
        return 2 if one % 4 + other % 4 == 3 else 1
    return 2 if abs(one - other) == 4 else 0
