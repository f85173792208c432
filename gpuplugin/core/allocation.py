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


def check_request(
    resource: Resource,
    devices: Mapping[str, Device],
    device_ids: Sequence[str],
    *,
    distinct: bool = False,
) -> tuple[Device, ...]:
    """The devices of a request, in its order, without repeats; `devices` has all by id.

    Raises AllocationError for an unknown id, for several replicas where the configuration refuses
    that, and for two replicas of one GPU if `distinct`. The texts are NVIDIA's where it has them.
    Health is not checked: the kubelet requests healthy devices, and a device that failed a moment
    ago must not fail a pod that was admitted.
    """
    for device_id in device_ids:
        if device_id not in devices:
            raise AllocationError(resource.name, f"unknown device: {device_id}")
    found = [devices[device_id] for device_id in device_ids]
    count = len(found)
    if count > 1 and any(device.replica is not None for device in found):
        if resource.fail_requests_greater_than_one:
            reason = f"maximum request size for shared resources is 1; found {count}"
            raise AllocationError(resource.name, reason)
        per_gpu = Counter(device.gpu_uuid for device in found if device.replica is not None)
        for gpu_uuid, replicas in per_gpu.items():
            if distinct and replicas > 1:
                raise AllocationError(
                    resource.name,
                    f"{count} replicas must be on distinct GPUs (policy spread-strict); "
                    f"found {replicas} on {gpu_uuid}",
                )
    return tuple(found)
