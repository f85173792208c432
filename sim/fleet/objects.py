"""The objects that a kubelet keeps at the API server: nodes, leases, the status of pods. Pure."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpuplugin.core.jsonobject import JsonObject
    from gpuplugin.core.nodecondition import Condition
    from gpuplugin.daemon.cluster.eventqueue import NodeEvent
    from sim.kubelet.devices import Amount

FLEET: Final = "gpuplugin.dev/fleet"
"""The label of nodes that a fleet keeps; its value is the fleet's prefix of names."""
TAINT: Final = "gpuplugin.dev/simulated"
LEASE_NAMESPACE: Final = "kube-node-lease"
EVENT_NAMESPACE: Final = "default"
GPU_CONDITION: Final = "GPUHealthy"
_REPORTER: Final = "gpuplugin"
_KUBELET_VERSION = "v1.36.0"
_MACHINES = uuid.UUID("5b0a7f0c-3c1c-4d63-9a3e-6a6c7f2a8f11")

# As a kubelet (1.36) words them: pkg/kubelet/nodestatus/setters.go.
_CONDITIONS = (
    ("MemoryPressure", "False", "KubeletHasSufficientMemory",
     "kubelet has sufficient memory available"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Machine:
    """What every node of a fleet has beside its GPUs; quantities as Kubernetes writes them."""

    cpu: str = "64"
    memory: str = "512Gi"
    pods: str = "110"
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    tainted: bool = False


def node_body(
    name: str,
    fleet: str,
    scenario: str,
    number: int,
    machine: Machine,
    status: JsonObject,
    labels: Mapping[str, str] = MappingProxyType({}),
) -> JsonObject:
    """A Node as its kubelet registers it; `labels` are of its GPUs, `machine` has the user's."""
    own = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "node.kubernetes.io/instance-type": scenario,
    }
    spec: JsonObject = {"taints": taints({}, machine)}
    metadata = {"name": name, "labels": {**own, **labels, **machine.labels, FLEET: fleet}}
    fixed = {"addresses": addresses(name, number), "nodeInfo": node_info(name)}
    return {"metadata": metadata, "spec": spec, "status": {**status, **fixed}}


def taints(spec: JsonObject, machine: Machine) -> list[JsonObject]:
    """The taints of a node whose spec is this: those of others stay."""
    known = spec.get("taints")
    known = known if isinstance(known, list) else []
    others = [one for one in known if isinstance(one, dict) and one.get("key") != TAINT]
    own: JsonObject = {"key": TAINT, "value": "true", "effect": "NoSchedule"}
    return [*others, own] if machine.tainted else others


def node_conditions(
    gpus: Condition | None, known: Sequence[JsonObject], now: datetime
) -> list[JsonObject]:
    """Those of a healthy kubelet, and GPUHealthy unless it is None.

    A status that is as in the known conditions has been so since then.
    """
    wanted = list(_CONDITIONS)
    if gpus is not None:
        wanted.append((GPU_CONDITION, gpus.status, gpus.reason, gpus.message))
    before = {(one.get("type"), one.get("status")): one for one in known}
    return [
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": seconds(now),
            "lastTransitionTime": before.get((kind, status), {}).get("lastTransitionTime")
            or seconds(now),
        }
        for kind, status, reason, message in wanted
    ]


def node_status(
    amounts: Mapping[str, Amount], machine: Machine, conditions: Sequence[JsonObject]
) -> JsonObject:
    """What a kubelet reports at each change, and every five minutes: amounts and conditions."""
    usual = {"cpu": machine.cpu, "memory": machine.memory, "pods": machine.pods}
    capacity = {name: str(amount.capacity) for name, amount in amounts.items()}
    allocatable = {name: str(amount.allocatable) for name, amount in amounts.items()}
    return {
        "capacity": usual | capacity,
        "allocatable": usual | allocatable,
        "conditions": list(conditions),
    }


_POD_ADDRESSES = 65_534


def address(number: int) -> str:
    """The address of the node of this number, from 198.18.0.0/15, which nobody routes (RFC 2544).

    Nodes have its first half, pods the second.
    """
    number = number % 65_534 + 1
    return f"198.18.{number // 256}.{number % 256}"


def pod_address(number: int) -> str:
    number = number % 65_534 + 1
    return f"198.19.{number // 256}.{number % 256}"


class PodAddresses:
    """The addresses of a fleet's pods: no two pods have the same, up to 65,534 of them."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next = 0

    def take(self, wanted: str = "") -> str:
        """An address that is free: the wanted one if it is."""
        address = wanted
        for _ in range(_POD_ADDRESSES):
            if address and address not in self._taken:
                break
            address = pod_address(self._next)
            self._next += 1
        self._taken.add(address)
        return address

    def free(self, address: str) -> None:
        self._taken.discard(address)


def addresses(name: str, number: int) -> list[JsonObject]:
    return [
        {"type": "InternalIP", "address": address(number)},
        {"type": "Hostname", "address": name},
    ]


def node_info(name: str) -> JsonObject:
    machine = uuid.uuid5(_MACHINES, name)
    return {
        "architecture": "amd64",
        "bootID": str(uuid.uuid5(machine, "boot")),
        "containerRuntimeVersion": "gpuplugin-sim://1",
        "kernelVersion": "6.12.0-simulated",
        "kubeProxyVersion": "",
        "kubeletVersion": _KUBELET_VERSION,
        "machineID": machine.hex,
        "operatingSystem": "linux",
        "osImage": "gpuplugin simulated node",
        "systemUUID": str(machine),
    }


def lease_body(node: str, node_uid: str, duration_s: int, now: datetime) -> JsonObject:
    """A kubelet's lease, which is removed with its node."""
    owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid}
    return {
        "metadata": {
            "name": node,
            "namespace": LEASE_NAMESPACE,
            "ownerReferences": [owner],
        },
        "spec": {"holderIdentity": node, "leaseDurationSeconds": duration_s} | _renewal(now),
    }


def lease_renewal(now: datetime) -> JsonObject:
    return {"spec": _renewal(now)}


def _renewal(now: datetime) -> JsonObject:
    return {"renewTime": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}


def event_body(event: NodeEvent, node: str) -> JsonObject:
    """An Event on a node, as the plugin writes it there (`gpuplugin.daemon.cluster.kubeapi`)."""
    return {
        "metadata": {"name": event.name, "namespace": EVENT_NAMESPACE},
        "involvedObject": {"kind": "Node", "name": node, "uid": node},
        "reason": event.reason,
        "message": event.message,
        "type": event.type,
        "firstTimestamp": seconds(event.first),
        "source": {"component": _REPORTER, "host": node},
        "reportingComponent": _REPORTER,
        "reportingInstance": node,
    } | event_count(event)


def event_count(event: NodeEvent) -> JsonObject:
    """What changes of an Event that comes again."""
    return {"count": event.count, "lastTimestamp": seconds(event.last)}


def seconds(when: datetime) -> str:
    """A time as the API writes it."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
