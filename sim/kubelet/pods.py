"""Pods and the node of the kubelet stand-in: specification, grants, status, events. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from gpuplugin.core.sharing import uuid_of
from sim.kubelet.devices import Amount

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sim.scheduler.claims import OfferedDevice


Health: TypeAlias = Literal["Healthy", "Unhealthy", "Unknown"]


class Phase(StrEnum):
    PENDING = "Pending"
    RUNNING = "Running"
    FAILED = "Failed"
    TERMINATING = "Terminating"
    """Deleted, while its claims are still prepared."""


@dataclass(frozen=True, slots=True)
class Container:
    """`claims` are those of the pod that it uses: `claim`, or `claim/request` for a part of it."""

    name: str
    limits: Mapping[str, int]
    claims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PodClaim:
    """A claim as a pod names it: a ResourceClaim that is there, or a template for its own."""

    name: str
    claim: str = ""
    template: str = ""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod to run. `static` pods go to the kubelet without passing the scheduler."""

    name: str
    containers: tuple[Container, ...]
    namespace: str = "default"
    uid: str = ""
    static: bool = False
    claims: tuple[PodClaim, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    def requests(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for container in self.containers:
            for resource, count in container.limits.items():
                total[resource] = total.get(resource, 0) + count
        return total


def simple_pod(name: str, limits: Mapping[str, int], *, static: bool = False) -> Pod:
    return Pod(name, (Container("main", MappingProxyType(dict(limits))),), static=static)


@dataclass(frozen=True, slots=True)
class Grant:
    """What one container got of one resource; `raw` is the plugin's answer, serialised."""

    container: str
    resource: str
    device_ids: tuple[str, ...]
    envs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    annotations: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    mounts: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    raw: bytes = b""


@dataclass(frozen=True, slots=True)
class ClaimedDevice:
    """A device that a pod has by a claim; `containers` are those that get its CDI devices.

    `pod_claim` is the pod's name for the claim, "" for the claim behind an extended resource.
    `uuid` is the device's attribute, and empty if its driver publishes none.
    """

    claim: str
    pod_claim: str
    request: str
    driver: str
    pool: str
    device: str
    share_id: str
    uuid: str
    containers: tuple[str, ...]
    cdi_devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PodStatus:
    """Where a pod stands; `reason` and `message` are the words of a real kubelet or scheduler."""

    phase: Phase
    reason: str = ""
    message: str = ""
    grants: tuple[Grant, ...] = ()
    devices: tuple[ClaimedDevice, ...] = ()

    @property
    def uuids(self) -> tuple[str, ...]:
        """The GPUs and MIG devices that the pod has, by device plugin or by claim."""
        granted = (uuid_of(one) for grant in self.grants for one in grant.device_ids)
        return tuple(dict.fromkeys((*granted, *(one.uuid for one in self.devices))))


@dataclass(frozen=True, slots=True)
class ResourceHealth:
    """An entry of a container's allocatedResourcesStatus; `id` is the first CDI device."""

    container: str
    name: str
    id: str
    health: Health
    message: str


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call to a plugin: `error` is "" if it succeeded; for DRA `resource` is the driver."""

    method: str
    resource: str
    duration_s: float
    error: str


@dataclass(frozen=True, slots=True)
class KubeletEvent:
    """One fact, in the order in which facts came about.

    `kind` is one of registered, refused, list, stream-ended, call, pod, wiped, started, stopped.
    """

    kind: str
    text: str
    call: CallRecord | None = None


@dataclass(frozen=True, slots=True)
class PodView:
    pod: Pod
    status: PodStatus


@dataclass(frozen=True, slots=True)
class NodeView:
    """The node at one moment: amounts and device health by resource, pods by `namespace/name`.

    `list_updates` counts the lists that were received per resource since the kubelet started.
    `drivers` are the endpoints of DRA drivers, the newest last; `health` is that of devices which
    pods have by claims that they name, by `namespace/name`; `offered` are the devices in slices, in
    the scheduler's order.
    """

    amounts: Mapping[str, Amount]
    devices: Mapping[str, Mapping[str, bool]]
    pods: Mapping[str, PodView]
    list_updates: Mapping[str, int]
    drivers: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    health: Mapping[str, tuple[ResourceHealth, ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    offered: tuple[OfferedDevice, ...] = ()

    def capacity(self, resource: str) -> int:
        return self.amounts.get(resource, Amount(0, 0)).capacity

    def allocatable(self, resource: str) -> int:
        return self.amounts.get(resource, Amount(0, 0)).allocatable

    def unhealthy(self, resource: str) -> tuple[str, ...]:
        return tuple(one for one, ok in self.devices.get(resource, {}).items() if not ok)
