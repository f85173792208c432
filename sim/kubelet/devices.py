"""The device manager, and its checkpoint `kubelet_internal_checkpoint` as text. Pure.

Follows the kubelet's device manager (1.36): everything is keyed by resource name alone, so the end
of an old stream disconnects a new plugin of the same resource as well. Time is an argument. The
checkpoint has the kubelet's layout; its checksum is a CRC of the JSON, not a hash of a Go dump.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


ENDPOINT_GRACE_S = 300.0
"""A resource without a plugin keeps its capacity for five minutes."""


class DeviceShortage(Exception):
    """A container cannot get its devices; the text is the kubelet's."""


@dataclass(frozen=True, slots=True)
class Listed:
    id: str
    healthy: bool
    numa_nodes: tuple[int, ...] = ()


@dataclass(slots=True)
class _Resource:
    healthy: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Device ids with their NUMA nodes."""
    unhealthy: dict[str, tuple[int, ...]] = field(default_factory=dict)
    stopped_at_s: float | None = None
    """When the plugin went away; None while one is connected."""
    wants_pre_start: bool = False
    has_preference: bool = False


@dataclass(frozen=True, slots=True)
class Holding:
    pod_uid: str
    container: str
    resource: str
    device_ids: tuple[str, ...]
    numa: Mapping[str, tuple[int, ...]]
    raw: bytes


@dataclass(frozen=True, slots=True)
class Amount:
    capacity: int
    allocatable: int


class DeviceManager:
    """State of all device plugins of a node and of the devices that containers hold."""

    def __init__(self) -> None:
        self._resources: dict[str, _Resource] = {}
        self._holdings: list[Holding] = []
        self._ever_seen: set[str] = set()

    def connected(self, resource: str, *, has_preference: bool, wants_pre_start: bool) -> None:
        """A plugin of this resource registered; its devices come with the first list."""
        state = self._resources.setdefault(resource, _Resource())
        state.stopped_at_s = None
        state.has_preference = has_preference
        state.wants_pre_start = wants_pre_start
        self._ever_seen.add(resource)

    def listed(self, resource: str, devices: Iterable[Listed]) -> None:
        """A list arrived: it replaces the devices of the resource, also those of another plugin."""
        state = self._resources.setdefault(resource, _Resource())
        state.healthy, state.unhealthy = {}, {}
        for device in devices:
            kind = state.healthy if device.healthy else state.unhealthy
            kind[device.id] = device.numa_nodes

    def disconnected(self, resource: str, now_s: float) -> None:
        """A stream of this resource ended: all its devices are unhealthy until a new list."""
        state = self._resources.get(resource)
        if state is None:
            return
        state.unhealthy |= state.healthy
        state.healthy = {}
        if state.stopped_at_s is None:
            state.stopped_at_s = now_s

    def amounts(self, now_s: float) -> dict[str, Amount]:
        """Capacity and allocatable by resource; a resource without devices stays with 0."""
        for name, state in list(self._resources.items()):
            if state.stopped_at_s is not None and now_s - state.stopped_at_s >= ENDPOINT_GRACE_S:
                del self._resources[name]
        amounts = {name: Amount(0, 0) for name in sorted(self._ever_seen)}
        for name, state in self._resources.items():
            healthy = len(state.healthy)
            amounts[name] = Amount(healthy + len(state.unhealthy), healthy)
        return amounts

    def is_device_resource(self, resource: str) -> bool:
        return resource in self._ever_seen

    def has_preference(self, resource: str) -> bool:
        return resource in self._resources and self._resources[resource].has_preference

    def wants_pre_start(self, resource: str) -> bool:
        return resource in self._resources and self._resources[resource].wants_pre_start

    def available(self, resource: str, needed: int) -> tuple[str, ...]:
        """Healthy devices that no container holds, by id; raises `DeviceShortage` if too few."""
        state = self._resources.get(resource)
        if state is None:
            raise DeviceShortage(f"cannot allocate unregistered device {resource}")
        if not state.healthy:
            raise DeviceShortage(
                f"no healthy devices present; cannot allocate unhealthy devices {resource}"
            )
        free = tuple(sorted(state.healthy.keys() - self.in_use(resource)))
        if len(free) < needed:
            raise DeviceShortage(
                f"requested number of devices unavailable for {resource}. "
                f"Requested: {needed}, Available: {len(free)}"
            )
        return free

    def in_use(self, resource: str) -> frozenset[str]:
        return frozenset(
            device_id
            for holding in self._holdings
            if holding.resource == resource
            for device_id in holding.device_ids
        )

    def hold(
        self, pod_uid: str, container: str, resource: str, device_ids: Iterable[str], raw: bytes
    ) -> None:
        ids = tuple(device_ids)
        state = self._resources.get(resource) or _Resource()
        numa = {one: state.healthy.get(one, state.unhealthy.get(one, ())) for one in ids}
        self._holdings.append(Holding(pod_uid, container, resource, ids, numa, raw))

    def release(self, pod_uid: str) -> None:
        self._holdings = [held for held in self._holdings if held.pod_uid != pod_uid]

    @property
    def holdings(self) -> tuple[Holding, ...]:
        return tuple(self._holdings)

    def devices(self, resource: str) -> dict[str, bool]:
        state = self._resources.get(resource) or _Resource()
        health = dict.fromkeys(state.healthy, True) | dict.fromkeys(state.unhealthy, False)
        return dict(sorted(health.items()))

    def allocatable(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """NUMA nodes of every healthy device, by resource."""
        return {
            name: dict(sorted(self._resources[name].healthy.items())) for name in self.resources
        }

    @property
    def resources(self) -> tuple[str, ...]:
        """Resources that have devices or had some within the grace period."""
        return tuple(sorted(self._resources))

    def restore(self, holdings: Iterable[Holding], registered: Iterable[str], now_s: float) -> None:
        """Start from a checkpoint: devices are held, resources known, no plugin is connected."""
        self._holdings = list(holdings)
        for resource in registered:
            self._resources[resource] = _Resource(stopped_at_s=now_s)
            self._ever_seen.add(resource)


FILE_NAME = "kubelet_internal_checkpoint"
_NO_NUMA_NODE = "-1"


class CheckpointDamaged(Exception):
    """The file is not a checkpoint, or its checksum is wrong."""


def write_checkpoint(manager: DeviceManager) -> str:
    data = {
        "PodDeviceEntries": [_entry(holding) for holding in manager.holdings],
        "RegisteredDevices": {
            resource: sorted(id_ for id_, healthy in manager.devices(resource).items() if healthy)
            for resource in manager.resources
        },
    }
    return json.dumps({"Data": data, "Checksum": _checksum(data)})


def read_checkpoint(text: str) -> tuple[tuple[Holding, ...], tuple[str, ...]]:
    """Holdings and registered resources of a checkpoint; raises `CheckpointDamaged`."""
    try:
        content = json.loads(text)
        data, checksum = content["Data"], content["Checksum"]
        if checksum != _checksum(data):
            raise CheckpointDamaged("the checkpoint's checksum is wrong")
        holdings = tuple(_holding(entry) for entry in data["PodDeviceEntries"])
        return holdings, tuple(_mapping(data["RegisteredDevices"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointDamaged(f"not a device manager checkpoint: {error}") from error


def _entry(holding: Holding) -> dict[str, object]:
    by_node: dict[str, list[str]] = {}
    for device_id in holding.device_ids:
        for node in holding.numa.get(device_id, ()) or (_NO_NUMA_NODE,):
            by_node.setdefault(str(node), []).append(device_id)
    return {
        "PodUID": holding.pod_uid,
        "ContainerName": holding.container,
        "ResourceName": holding.resource,
        "DeviceIDs": by_node,
        "AllocResp": base64.b64encode(holding.raw).decode(),
    }


def _holding(entry: dict[str, object]) -> Holding:
    numa: dict[str, tuple[int, ...]] = {}
    for node, device_ids in _mapping(entry["DeviceIDs"]).items():
        for device_id in device_ids:
            numa[device_id] = () if node == _NO_NUMA_NODE else (*numa.get(device_id, ()), int(node))
    return Holding(
        pod_uid=str(entry["PodUID"]),
        container=str(entry["ContainerName"]),
        resource=str(entry["ResourceName"]),
        device_ids=tuple(numa),
        numa=numa,
        raw=base64.b64decode(str(entry["AllocResp"])),
    )


def _mapping(value: object) -> dict[str, list[str]]:
    """Lists of device ids by resource or by NUMA node; raises `TypeError` for anything else."""
    if not isinstance(value, dict):
        raise TypeError("a mapping of device ids is missing")
    for device_ids in value.values():
        if not isinstance(device_ids, list) or not all(isinstance(one, str) for one in device_ids):
            raise TypeError("device ids are not a list of names")
    return value


def _checksum(data: object) -> int:
    return zlib.crc32(json.dumps(data, sort_keys=True).encode())
