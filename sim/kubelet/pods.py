"""Pods as the kubelet stand-in knows them: specification, grants of devices, status. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Phase(Enum):
    """A pod's phase, as in the Kubernetes API."""

    PENDING = "Pending"
    RUNNING = "Running"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class Container:
    """A container and its limits of extended resources."""

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
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    def requests(self) -> dict[str, int]:
        """What the scheduler adds up: the limits of all containers, by resource."""
        total: dict[str, int] = {}
        for container in self.containers:
            for resource, count in container.limits.items():
                total[resource] = total.get(resource, 0) + count
        return total


def simple_pod(name: str, limits: Mapping[str, int], *, static: bool = False) -> Pod:
    """A pod of one container named `main`."""
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
