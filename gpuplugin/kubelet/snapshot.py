"""What the RPC handlers of one resource read: everything serialised in advance, immutable.

Made when the inventory changes; a change of health makes only a new list, from parts kept here.
How large a list would be is found by arithmetic: nothing is built that the kubelet cannot receive.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from gpuplugin.core.injection import InjectionPlan, inject
from gpuplugin.core.preference import PreferenceIndex
from gpuplugin.core.replicas import SEPARATOR
from gpuplugin.kubelet.protowire import entry, message, number, text
from gpuplugin.rpc.services import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gpuplugin.core.injection import Injection
    from gpuplugin.core.inventory import Device, Resource
    from gpuplugin.core.preference import PolicyName
    from hal import Link

HEALTHY = "Healthy"
UNHEALTHY = "Unhealthy"

IsHealthy: TypeAlias = "Callable[[str, str | None], bool]"
"""Whether a GPU, or a MIG device of it, may be allocated: called with the UUIDs of both."""


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """What containers get, and which devices are preferred."""

    injection: InjectionPlan = InjectionPlan()
    policy: PolicyName = "distributed"
    links: Mapping[tuple[str, str], Link] = field(default_factory=lambda: MappingProxyType({}))


_PLAIN = ServingPlan()

_HEALTH_FIELD = 1 + 1 + len("Unhealthy")
"""Tag, length and text; Unhealthy is the longer of the two words."""

_SHORT_BYTES = 125
"""A device id so long has lengths of one byte around it: field 1 of field 1 of the request."""


@dataclass(frozen=True, slots=True)
class ListPart:
    """The replicas of one GPU or MIG device as a piece of the list: pieces can be concatenated."""

    gpu_uuid: str
    mig_uuid: str | None
    device_count: int
    healthy: bytes
    unhealthy: bytes


@dataclass(frozen=True, slots=True)
class ResourceSnapshot:
    """Responses of one resource.

    `lone_responses` has, by the serialised AllocateRequest for one container and one device, the
    serialised AllocateResponse: nearly every call is one of these, and nothing is parsed for it.
    """

    resource: Resource
    plan: ServingPlan
    devices: Mapping[str, Device]
    parts: tuple[ListPart, ...]
    lone_responses: Mapping[bytes, bytes]
    preference: PreferenceIndex

    def device_list(self, is_healthy: IsHealthy) -> bytes:
        """A serialised ListAndWatchResponse; `is_healthy` is called once per GPU or MIG device."""
        return b"".join(
            part.healthy if is_healthy(part.gpu_uuid, part.mig_uuid) else part.unhealthy
            for part in self.parts
        )

    def healthy_count(self, is_healthy: IsHealthy) -> int:
        """Devices that such a list calls Healthy."""
        return sum(
            part.device_count for part in self.parts if is_healthy(part.gpu_uuid, part.mig_uuid)
        )

    def allocate_response(self, devices: Sequence[Device]) -> bytes:
        """A serialised AllocateResponse for one container that gets these devices."""
        return _allocate_response(self.resource, devices, self.plan.injection)


def snapshot_of(resource: Resource, plan: ServingPlan = _PLAIN) -> ResourceSnapshot:
    """Serialise a resource; that its list fits is checked by `check_list_size`."""
    parts = tuple(
        _list_part(gpu_uuid, mig_uuid, tuple(devices))
        for (gpu_uuid, mig_uuid), devices in groupby(resource.devices, key=_unit)
    )
    # Replicas of a device are the same to a container, so they share one response.
    by_uuid = {
        device.uuid: _allocate_response(resource, [device], plan.injection)
        for device in {device.uuid: device for device in resource.devices}.values()
    }
    return ResourceSnapshot(
        resource=resource,
        plan=plan,
        devices=MappingProxyType({device.id: device for device in resource.devices}),
        parts=parts,
        lone_responses=MappingProxyType(
            {_lone_request(device.id): by_uuid[device.uuid] for device in resource.devices}
        ),
        preference=PreferenceIndex.of(resource, plan.links),
    )


def _lone_request(device_id: str) -> bytes:
    """As the kubelet writes it: one container with one device."""
    encoded = device_id.encode()
    if len(encoded) <= _SHORT_BYTES:
        return b"\x0a%c\x0a%c%b" % (len(encoded) + 2, len(encoded), encoded)
    return message(1, message(1, encoded))


def _allocate_response(
    resource: Resource, devices: Sequence[Device], injection: InjectionPlan
) -> bytes:
    return message(1, _container(inject(resource.name, devices, injection)))


def _container(injection: Injection) -> bytes:
    """A ContainerAllocateResponse; maps in the order of their keys."""
    return b"".join(
        (
            *(entry(1, *one) for one in sorted(dict(injection.envs).items())),
            *(
                message(2, text(1, one.container_path) + text(2, one.host_path) + number(3, 1))
                for one in injection.mounts
            ),
            *(
                message(3, text(1, one.container_path) + text(2, one.host_path) + text(3, "rw"))
                for one in injection.nodes
            ),
            *(entry(4, *one) for one in sorted(dict(injection.annotations).items())),
            *(message(5, text(1, name)) for name in injection.cdi_devices),
        )
    )


def _unit(device: Device) -> tuple[str, str | None]:
    """What decides on the device's health: its GPU, and its MIG device if it has one."""
    return device.gpu_uuid, device.mig.uuid if device.mig else None


def _list_part(gpu_uuid: str, mig_uuid: str | None, devices: Sequence[Device]) -> ListPart:
    return ListPart(
        gpu_uuid,
        mig_uuid,
        len(devices),
        _devices(devices, HEALTHY),
        _devices(devices, UNHEALTHY),
    )


def _devices(devices: Iterable[Device], health: str) -> bytes:
    """Pieces of a ListAndWatchResponse."""
    return b"".join(
        message(1, message(1, device.id.encode()) + rest)
        for numa_node, group in groupby(devices, key=lambda device: device.numa_node)
        for rest in (text(2, health) + _topology(numa_node),)
        for device in group
    )


def _topology(numa_node: int | None) -> bytes:
    if numa_node is None:
        return b""
    return message(3, message(1, number(1, numa_node)))


class ListTooLarge(Exception):
    """The kubelet cannot receive the device list of a resource.

    `largest_replica_count` is the largest number of replicas with which it can, 0 if with none.
    """

    def __init__(self, resource: str, size_bytes: int, wanted: int, fitting: int) -> None:
        self.largest_replica_count = fitting
        super().__init__(
            f"the device list of {resource} is {size_bytes} bytes with {wanted} replicas, the "
            f"kubelet receives at most {MAX_MESSAGE_BYTES}; "
            f"set sharing.timeSlicing.resources[].replicas to at most {fitting}"
        )


@dataclass(frozen=True, slots=True)
class _Sized:
    id_bytes: int
    topology_bytes: int
    replicas: int


def check_list_size(resource: str, devices: Sequence[tuple[Device, int]]) -> None:
    """Refuse a resource whose list could pass the limit; `devices` are whole, with replicas.

    Raises:
        ListTooLarge: with the largest replica count that fits.
    """
    sized = [
        _Sized(len(device.uuid.encode()), _topology_bytes(device.numa_node), replicas)
        for device, replicas in devices
    ]
    size_bytes = _list_bytes(sized, None)
    if size_bytes <= MAX_MESSAGE_BYTES:
        return
    wanted = max(one.replicas for one in sized)
    raise ListTooLarge(resource, size_bytes, wanted, _largest_fitting(sized, wanted))


def _largest_fitting(sized: Sequence[_Sized], wanted: int) -> int:
    """By bisection: the list grows with the count."""
    fits, does_not = 0, wanted
    while does_not - fits > 1:
        middle = (fits + does_not) // 2
        if _list_bytes(sized, middle) <= MAX_MESSAGE_BYTES:
            fits = middle
        else:
            does_not = middle
    return fits


def _list_bytes(sized: Iterable[_Sized], at_most: int | None) -> int:
    """Size of the list if no device had more than `at_most` replicas."""
    return sum(
        _replicas_bytes(one, one.replicas if at_most is None else min(at_most, one.replicas))
        for one in sized
    )


def _replicas_bytes(one: _Sized, replicas: int) -> int:
    """All replicas of one device: those whose numbers have the same length are equally long."""
    if replicas == 1:
        return _device_bytes(one, one.id_bytes)
    total, first, digits = 0, 0, 1
    while first < replicas:
        beyond = min(10**digits, replicas)
        total += (beyond - first) * _device_bytes(one, one.id_bytes + len(SEPARATOR) + digits)
        first, digits = beyond, digits + 1
    return total


def _device_bytes(one: _Sized, id_bytes: int) -> int:
    content = 1 + _varint_bytes(id_bytes) + id_bytes + _HEALTH_FIELD + one.topology_bytes
    return 1 + _varint_bytes(content) + content


def _topology_bytes(numa_node: int | None) -> int:
    """TopologyInfo with one NUMANode; node 0 is the default value, which takes no bytes."""
    if numa_node is None:
        return 0
    node = 1 + _varint_bytes(numa_node) if numa_node else 0
    return 1 + 1 + 1 + 1 + node


def _varint_bytes(value: int) -> int:
    return max(1, (value.bit_length() + 6) // 7)
