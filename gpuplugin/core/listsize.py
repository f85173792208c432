"""How large a device list is on the wire, by arithmetic: nothing is built that would not fit.

The kubelet receives at most 4 MiB in one message and drops a plugin whose list is larger.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuplugin.core.sharing import SEPARATOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gpuplugin.core.inventory import Device

MAX_LIST_BYTES = 4 * 1024 * 1024
"""The kubelet receives nothing larger: gRPC's default limit, which it does not raise."""

MAX_REPLICAS = 100_000
"""Of one device; no list has room for so many: an entry takes over 60 bytes."""

_HEALTH_FIELD = 1 + 1 + len("Unhealthy")
"""Tag, length and text; Unhealthy is the longer of the two."""


class ListTooLarge(Exception):
    """A list that is too large for the kubelet; `largest_replica_count` would fit, if not 0."""

    def __init__(self, resource: str, size_bytes: int, requested: int, fitting: int) -> None:
        self.largest_replica_count = fitting
        super().__init__(
            f"the device list of {resource} is {size_bytes} bytes with {requested} replicas, the "
            f"kubelet receives at most {MAX_LIST_BYTES}; "
            f"set sharing.timeSlicing.resources[].replicas to at most {fitting}"
        )


@dataclass(frozen=True, slots=True)
class _Whole:
    id_bytes: int
    topology_bytes: int
    replicas: int


def check_list_size(resource: str, devices: Sequence[tuple[Device, int]]) -> None:
    """Check the list of whole `devices` with replicas; raises `ListTooLarge` if it may not fit."""
    wholes = [
        _Whole(len(device.uuid.encode()), _topology_bytes(device.numa_node), replicas)
        for device, replicas in devices
    ]
    size_bytes = _list_bytes(wholes, None)
    if size_bytes <= MAX_LIST_BYTES:
        return
    requested = max(whole.replicas for whole in wholes)
    counts = range(1, min(requested, MAX_REPLICAS))
    fitting = bisect_right(counts, MAX_LIST_BYTES, key=lambda count: _list_bytes(wholes, count))
    raise ListTooLarge(resource, size_bytes, requested, fitting)


def _list_bytes(wholes: Iterable[_Whole], at_most: int | None) -> int:
    """Size of the list if no device had more than `at_most` replicas."""
    return sum(
        _replicas_bytes(whole, whole.replicas if at_most is None else min(at_most, whole.replicas))
        for whole in wholes
    )


def _replicas_bytes(whole: _Whole, replicas: int) -> int:
    """All replicas of one device: those whose numbers have the same length are equally long."""
    if replicas == 1:
        return _device_bytes(whole, whole.id_bytes)
    total, first, digits = 0, 0, 1
    while first < replicas:
        beyond = min(10**digits, replicas)
        total += (beyond - first) * _device_bytes(whole, whole.id_bytes + len(SEPARATOR) + digits)
        first, digits = beyond, digits + 1
    return total


def _device_bytes(whole: _Whole, id_bytes: int) -> int:
    content = 1 + _varint_bytes(id_bytes) + id_bytes + _HEALTH_FIELD + whole.topology_bytes
    return 1 + _varint_bytes(content) + content


def _topology_bytes(numa_node: int | None) -> int:
    """TopologyInfo with one NUMANode; node 0 is the default value, which takes no bytes."""
    if numa_node is None:
        return 0
    node = 1 + _varint_bytes(numa_node) if numa_node else 0
    return 1 + 1 + 1 + 1 + node


def _varint_bytes(value: int) -> int:
    """The bytes of a number from 1 on."""
    return (value.bit_length() + 6) // 7
