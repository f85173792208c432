"""Allocate, without its wire format: are these device ids a request that may be granted?

What the container then gets is decided in `injection`; which ids to prefer in `preference`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.core.replicas import is_replica_id, uuid_of

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from gpuplugin.core.inventory import Resource


class AllocationError(Exception):
    """A request that must be refused. The text reaches the user as the pod's status message."""

    def __init__(self, resource: str, reason: str) -> None:
        super().__init__(f'invalid allocation request for "{resource}": invalid request: {reason}')
        self.resource = resource
        self.reason = reason


class UnknownDevice(AllocationError):
    """The request names a device that this resource does not have."""

    def __init__(self, resource: str, device_id: str) -> None:
        super().__init__(resource, f"unknown device: {device_id}")
        self.device_id = device_id


class SharedRequestTooLarge(AllocationError):
    """More than one replica was asked for while failRequestsGreaterThanOne is set."""

    def __init__(self, resource: str, found: int) -> None:
        super().__init__(resource, f"maximum request size for shared resources is 1; found {found}")
        self.found = found


def check_request(
    resource: Resource, known_ids: Container[str], device_ids: Sequence[str]
) -> tuple[str, ...]:
    """The UUIDs that the container gets: in the order of the request, without repeats.

    Health is not looked at: the kubelet asks for healthy devices, and a device that failed a
    moment ago must not fail a pod that was admitted. The texts are those of NVIDIA's plugin.

    Raises:
        UnknownDevice: an id is not one of `known_ids`.
        SharedRequestTooLarge: several replicas, and the configuration refuses that.
    """
    for device_id in device_ids:
        if device_id not in known_ids:
            raise UnknownDevice(resource.name, device_id)
    if (
        resource.fail_requests_greater_than_one
        and len(device_ids) > 1
        and any(is_replica_id(device_id) for device_id in device_ids)
    ):
        raise SharedRequestTooLarge(resource.name, len(device_ids))
    return tuple(dict.fromkeys(uuid_of(device_id) for device_id in device_ids))
