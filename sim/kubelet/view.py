"""What can be seen of the kubelet stand-in: pictures of the node, and a record of facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.kubelet.devices import Amount

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sim.kubelet.pods import Pod, PodStatus


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call to a plugin: `error` is "" if it succeeded."""

    method: str
    resource: str
    duration_s: float
    error: str


@dataclass(frozen=True, slots=True)
class Happened:
    """One fact, in the order in which facts came about.

    `kind` is one of registered, refused, list, stream-ended, call, pod, started, stopped.
    """

    kind: str
    text: str
    call: CallRecord | None = None


@dataclass(frozen=True, slots=True)
class PodView:
    """A pod with its status."""

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
        """Capacity of a resource, 0 if it is unknown."""
        return self.amounts.get(resource, Amount(0, 0)).capacity

    def allocatable(self, resource: str) -> int:
        """Allocatable of a resource, 0 if it is unknown."""
        return self.amounts.get(resource, Amount(0, 0)).allocatable

    def unhealthy(self, resource: str) -> tuple[str, ...]:
        """Ids of the devices that were last listed as unhealthy."""
        return tuple(one for one, ok in self.devices.get(resource, {}).items() if not ok)
