"""What the RPC handlers of one resource read: everything serialised in advance, immutable.

Made when the inventory changes; a change of health makes only a new list, from parts kept here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from gpuplugin.core.injection import InjectionPlan, inject
from gpuplugin.core.preference import PreferenceIndex
from gpuplugin.kubelet.protowire import entry, message, number, text

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

_SHORT_BYTES = 125
"""A device id so long has lengths of one byte around it: field 1 of field 1 of the request."""


@dataclass(frozen=True, slots=True)
class ListPart:
    """The replicas of one GPU or MIG device as a piece of the list: pieces can be concatenated."""

    gpu_uuid: str
    mig_uuid: str | None
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

    def allocate_response(self, devices: Sequence[Device]) -> bytes:
        """A serialised AllocateResponse for one container that gets these devices."""
        return _allocate_response(self.resource, devices, self.plan.injection)


def snapshot_of(resource: Resource, plan: ServingPlan = _PLAIN) -> ResourceSnapshot:
    """Serialise a resource; that its list fits is checked by `check_list_size`."""
    parts = tuple(
        ListPart(gpu_uuid, mig_uuid, _devices(devices, HEALTHY), _devices(devices, UNHEALTHY))
        for (gpu_uuid, mig_uuid), group in groupby(resource.devices, key=lambda device: device.unit)
        for devices in (tuple(group),)
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
