"""From GPUs and the sharing plan to what is advertised: resources and their device ids.

Health is not here: an inventory says what there is, not in which state it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuplugin.core.replicas import replica_id
from gpuplugin.core.sharing import GPU_RESOURCE, TimeSlicing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hal import Gpu


@dataclass(frozen=True, slots=True)
class Device:
    """One advertised device: a GPU, or one of its time-sliced replicas.

    `gpu_uuid` is the physical GPU whose faults it shares; `replica` is None for a whole GPU.
    """

    id: str
    gpu_uuid: str
    gpu_index: int
    replica: int | None
    numa_node: int | None


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource name with its devices, ordered by GPU index and replica."""

    name: str
    devices: tuple[Device, ...]
    replicas: int
    fail_requests_greater_than_one: bool

    @property
    def shared(self) -> bool:
        """True if its devices are replicas."""
        return self.replicas > 1


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything that the node advertises, ordered by resource name."""

    resources: tuple[Resource, ...] = ()

    @property
    def device_count(self) -> int:
        """Devices over all resources."""
        return sum(len(resource.devices) for resource in self.resources)


def build_inventory(gpus: Iterable[Gpu], sharing: TimeSlicing) -> Inventory:
    """The inventory of a node; a lost GPU stays in it, for it may be in use."""
    ordered = sorted(gpus, key=lambda gpu: (gpu.index, gpu.uuid))
    if not ordered:
        return Inventory()
    replicas = sharing.replicas_of(GPU_RESOURCE)
    devices = tuple(device for gpu in ordered for device in _devices_of(gpu, replicas))
    resource = Resource(
        name=sharing.advertised_name(GPU_RESOURCE),
        devices=devices,
        replicas=replicas,
        fail_requests_greater_than_one=sharing.fail_requests_greater_than_one,
    )
    return Inventory((resource,))


def _devices_of(gpu: Gpu, replicas: int) -> Iterable[Device]:
    if replicas == 1:
        yield Device(gpu.uuid, gpu.uuid, gpu.index, None, gpu.numa_node)
        return
    for replica in range(replicas):
        yield Device(replica_id(gpu.uuid, replica), gpu.uuid, gpu.index, replica, gpu.numa_node)
