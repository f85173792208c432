"""What the RPC handlers of one resource read: everything serialised in advance, immutable.

Made when the inventory changes; a change of health makes only a new list, from parts kept here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpuplugin.core.injection import inject_envvar
from gpuplugin.core.preference import PreferenceIndex
from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.kubelet.rpc import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gpuplugin.core.injection import Injection
    from gpuplugin.core.inventory import Device, Resource

HEALTHY = "Healthy"
UNHEALTHY = "Unhealthy"


class ListTooLarge(Exception):
    """The kubelet cannot receive the device list of this resource."""

    def __init__(self, resource: Resource, size_bytes: int) -> None:
        fitting = resource.replicas * MAX_MESSAGE_BYTES // size_bytes
        super().__init__(
            f"the device list of {resource.name} is {size_bytes} bytes for "
            f"{resource.replicas} replicas, the kubelet receives at most {MAX_MESSAGE_BYTES}; "
            f"set sharing.timeSlicing.resources[].replicas to at most {fitting}"
        )
        self.largest_replica_count = fitting


@dataclass(frozen=True, slots=True)
class ListPart:
    """The devices of one GPU as a piece of the list: serialised lists can be concatenated."""

    gpu_uuid: str
    device_count: int
    healthy: bytes
    unhealthy: bytes


@dataclass(frozen=True, slots=True)
class ResourceSnapshot:
    """Answers of one resource. `single_answers` holds the AllocateResponse of each lone device."""

    resource: Resource
    parts: tuple[ListPart, ...]
    single_answers: Mapping[str, bytes]
    preference: PreferenceIndex

    def device_list(self, is_healthy: Callable[[str], bool]) -> bytes:
        """A serialised ListAndWatchResponse; `is_healthy` is asked once per GPU UUID."""
        return b"".join(
            part.healthy if is_healthy(part.gpu_uuid) else part.unhealthy for part in self.parts
        )

    def healthy_count(self, is_healthy: Callable[[str], bool]) -> int:
        """Devices that such a list calls Healthy."""
        return sum(part.device_count for part in self.parts if is_healthy(part.gpu_uuid))


def snapshot_of(resource: Resource) -> ResourceSnapshot:
    """Serialise a resource.

    Raises:
        ListTooLarge: the list could pass the kubelet's limit; names the largest replica count.
    """
    parts = tuple(
        _list_part(uuid, tuple(devices))
        for uuid, devices in groupby(resource.devices, key=lambda device: device.gpu_uuid)
    )
    size_bytes = sum(len(part.unhealthy) for part in parts)
    if size_bytes > MAX_MESSAGE_BYTES:
        raise ListTooLarge(resource, size_bytes)
    by_gpu = {part.gpu_uuid: allocate_answer([(part.gpu_uuid,)]) for part in parts}
    return ResourceSnapshot(
        resource=resource,
        parts=parts,
        single_answers=MappingProxyType(
            {device.id: by_gpu[device.gpu_uuid] for device in resource.devices}
        ),
        preference=PreferenceIndex.of(resource),
    )


def allocate_answer(containers: Iterable[Sequence[str]]) -> bytes:
    """A serialised AllocateResponse; each container is given by the UUIDs that it gets."""
    return pb.AllocateResponse(
        container_responses=[_container_answer(inject_envvar(uuids)) for uuids in containers]
    ).SerializeToString(deterministic=True)


def _container_answer(injection: Injection) -> pb.ContainerAllocateResponse:
    return pb.ContainerAllocateResponse(envs=dict(injection.envs))


def _list_part(uuid: str, devices: Sequence[Device]) -> ListPart:
    return ListPart(uuid, len(devices), _devices(devices, HEALTHY), _devices(devices, UNHEALTHY))


def _devices(devices: Sequence[Device], health: str) -> bytes:
    return pb.ListAndWatchResponse(
        devices=[
            pb.Device(ID=device.id, health=health, topology=_topology(device.numa_node))
            for device in devices
        ]
    ).SerializeToString()


def _topology(numa_node: int | None) -> pb.TopologyInfo | None:
    if numa_node is None:
        return None
    return pb.TopologyInfo(nodes=[pb.NUMANode(ID=numa_node)])
