"""Pods and the node of the kubelet stand-in: specification, grants, status, events. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING

from sim.kubelet.devices import Amount

if TYPE_CHECKING:
    from collections.abc import Mapping


class Phase(Enum):
    PENDING = "Pending"
    RUNNING = "Running"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class Container:
    name: str
    limits: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod to run. `static` pods go to the kubelet without passing the scheduler."""

    name: str
    containers: tuple[Container, ...]
    namespace: str = "default"
    uid: str = ""
    static: bool = False

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
class PodStatus:
    """Where a pod stands; `reason` and `message` are the words of a real kubelet or scheduler."""

    phase: Phase
    reason: str = ""
    message: str = ""
    grants: tuple[Grant, ...] = ()


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call to a plugin: `error` is "" if it succeeded."""

    method: str
    resource: str
    duration_s: float
    error: str


@dataclass(frozen=True, slots=True)
class KubeletEvent:
    """One fact, in the order in which facts came about.

    `kind` is one of registered, refused, list, stream-ended, call, pod, started, stopped.
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
    """

    amounts: Mapping[str, Amount]
    devices: Mapping[str, Mapping[str, bool]]
    pods: Mapping[str, PodView]
    list_updates: Mapping[str, int]

    def capacity(self, resource: str) -> int:
        return self.amounts.get(resource, Amount(0, 0)).capacity

    def allocatable(self, resource: str) -> int:
        return self.amounts.get(resource, Amount(0, 0)).allocatable

    def unhealthy(self, resource: str) -> tuple[str, ...]:
        return tuple(one for one, ok in self.devices.get(resource, {}).items() if not ok)
