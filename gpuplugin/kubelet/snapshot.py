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
from gpuplugin.kubelet.answers import AllocateAnswers, PreferredAnswers, container_response
from gpuplugin.kubelet.protowire import message, number, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

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
    allocate: AllocateAnswers
    preferred: PreferredAnswers

    def device_list(self, is_healthy: IsHealthy) -> bytes:
        """A serialised ListAndWatchResponse; `is_healthy` is called once per GPU or MIG device."""
        return b"".join(
            part.healthy if is_healthy(part.gpu_uuid, part.mig_uuid) else part.unhealthy
            for part in self.parts
        )

    def allocate_response(self, devices: Sequence[Device]) -> bytes:
        """A serialised AllocateResponse for one container that gets these devices."""
        return _allocate_response(self.resource, devices, self.plan.injection)


def _allocate_response(resource: Resource, devices: Sequence[Device], plan: InjectionPlan) -> bytes:
    return message(1, container_response(inject(resource.name, devices, plan)))


def snapshot_of(resource: Resource, plan: ServingPlan = _PLAIN) -> ResourceSnapshot:
    """Serialise a resource; that its list fits is checked by `check_list_size`."""
    parts = tuple(
        ListPart(gpu_uuid, mig_uuid, _devices(devices, HEALTHY), _devices(devices, UNHEALTHY))
        for (gpu_uuid, mig_uuid), group in groupby(resource.devices, key=lambda device: device.unit)
        for devices in (tuple(group),)
    )
    preference = PreferenceIndex.of(resource, plan.links)
    allocate = AllocateAnswers.of(resource, plan.injection, plan.policy)
    return ResourceSnapshot(
        resource=resource,
        plan=plan,
        devices=MappingProxyType({device.id: device for device in resource.devices}),
        parts=parts,
        lone_responses=allocate.lone,
        preference=preference,
        allocate=allocate,
        preferred=PreferredAnswers.of(plan.policy, preference),
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
