"""Allocate, without its wire format: are these device ids a request that may be granted?

What the container then gets is decided in `injection`; which ids to prefer in `preference`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpuplugin.core.inventory import Device, Resource


class AllocationError(Exception):
    """A request that must be refused. The text reaches the user as the pod's status message."""

    def __init__(self, resource: str, reason: str) -> None:
        super().__init__(f'invalid allocation request for "{resource}": invalid request: {reason}')
        self.resource = resource
        self.reason = reason


class UnknownDevice(AllocationError):
    def __init__(self, resource: str, device_id: str) -> None:
        super().__init__(resource, f"unknown device: {device_id}")
        self.device_id = device_id


class SharedRequestTooLarge(AllocationError):
    """More than one replica was requested while failRequestsGreaterThanOne is set."""

    def __init__(self, resource: str, found: int) -> None:
        super().__init__(resource, f"maximum request size for shared resources is 1; found {found}")
        self.found = found


class NotDistinct(AllocationError):
    def __init__(self, resource: str, requested: int, gpu_uuid: str, found: int) -> None:
        super().__init__(
            resource,
            f"{requested} replicas must be on distinct GPUs (policy spread-strict); "
            f"found {found} on {gpu_uuid}",
        )


def check_request(
    resource: Resource,
    devices: Mapping[str, Device],
    device_ids: Sequence[str],
    *,
    distinct: bool = False,
) -> tuple[Device, ...]:
    """The devices of a request, in its order, without repeats; `devices` has all by id.

    Health is not checked: the kubelet requests healthy devices, and a device that failed a
    moment ago must not fail a pod that was admitted. The texts are those of NVIDIA's plugin,
    where it has them.

    Raises:
        UnknownDevice: an id is not one of `devices`.
        SharedRequestTooLarge: several replicas, and the configuration refuses that.
        NotDistinct: `distinct` is set, and two replicas are on one GPU.
    """
    for device_id in device_ids:
        if device_id not in devices:
            raise UnknownDevice(resource.name, device_id)
    found = [devices[device_id] for device_id in device_ids]
    if len(found) > 1 and any(device.replica is not None for device in found):
        if resource.fail_requests_greater_than_one:
            raise SharedRequestTooLarge(resource.name, len(found))
        if distinct:
            _check_distinct(resource, found)
    return tuple(found)


def _check_distinct(resource: Resource, found: Sequence[Device]) -> None:
    per_gpu = Counter(device.gpu_uuid for device in found if device.replica is not None)
    for gpu_uuid, count in per_gpu.items():
        if count > 1:
            raise NotDistinct(resource.name, len(found), gpu_uuid, count)
