"""Device ids: how a replica of a GPU is named, and how a name is taken apart."""

from __future__ import annotations

SEPARATOR = "::"


def replica_id(uuid: str, replica: int | str) -> str:
    """`<uuid>::<n>`, the form that NVIDIA's plugin, dcgm-exporter and others parse."""
    return f"{uuid}{SEPARATOR}{replica}"


def is_replica_id(device_id: str) -> bool:
    """True if the id names a replica rather than a whole device."""
    return SEPARATOR in device_id


def uuid_of(device_id: str) -> str:
    """The UUID in a device id, replica or not: everything before the first `::`."""
    return device_id.partition(SEPARATOR)[0]


def replica_of(device_id: str) -> str:
    """The number of the replica in a device id, "" for a whole device."""
    return device_id.partition(SEPARATOR)[2]
