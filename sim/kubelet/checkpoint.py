"""The device manager's checkpoint file, `kubelet_internal_checkpoint`, as text. Pure.

The layout is the kubelet's. The checksum is not: the kubelet hashes a Go dump of the structure,
here it is a CRC of the JSON, enough to notice damage.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import TYPE_CHECKING

from sim.kubelet.devices import Holding

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sim.kubelet.devices import DeviceManager

FILE_NAME = "kubelet_internal_checkpoint"
_NO_NUMA_NODE = "-1"


class CheckpointDamaged(Exception):
    """The file is not a checkpoint, or its checksum is wrong."""


def write_checkpoint(manager: DeviceManager) -> str:
    """The checkpoint of a device manager."""
    data = {
        "PodDeviceEntries": [_entry(holding) for holding in manager.holdings],
        "RegisteredDevices": {
            resource: sorted(id_ for id_, healthy in manager.devices(resource).items() if healthy)
            for resource in manager.resources
        },
    }
    return json.dumps({"Data": data, "Checksum": _checksum(data)})


def read_checkpoint(text: str) -> tuple[tuple[Holding, ...], tuple[str, ...]]:
    """Holdings and registered resources of a checkpoint.

    Raises:
        CheckpointDamaged: with what is wrong.
    """
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
        for node in _nodes(holding.numa.get(device_id, ())):
            by_node.setdefault(node, []).append(device_id)
    return {
        "PodUID": holding.pod_uid,
        "ContainerName": holding.container,
        "ResourceName": holding.resource,
        "DeviceIDs": by_node,
        "AllocResp": base64.b64encode(holding.raw).decode(),
    }


def _nodes(numa_nodes: Iterable[int]) -> list[str]:
    return [str(node) for node in numa_nodes] or [_NO_NUMA_NODE]


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
    """Lists of device ids by resource or by NUMA node.

    Raises:
        TypeError: something else.
    """
    if not isinstance(value, dict):
        raise TypeError("a mapping of device ids is missing")
    for device_ids in value.values():
        if not isinstance(device_ids, list) or not all(isinstance(one, str) for one in device_ids):
            raise TypeError("device ids are not a list of names")
    return value


def _checksum(data: object) -> int:
    return zlib.crc32(json.dumps(data, sort_keys=True).encode())
