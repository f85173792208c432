"""Values that many tests start from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gpuplugin.core.health import HealthPolicy
from gpuplugin.core.injection import InjectionPlan
from gpuplugin.core.inventory import GPU_RESOURCE, Device, Plan, Resource, build_inventory
from gpuplugin.core.nodeview import NodePlan, NodeView
from gpuplugin.core.sharing import SharedResource, TimeSlicing
from hal import Gpu, GpuState, Probe, RecoveryAction

if TYPE_CHECKING:
    from collections.abc import Sequence

GIB = 1024**3


def uuid_of_gpu(index: int) -> str:
    return f"GPU-{index:08x}-0000-4000-8000-000000000000"


def a_gpu(index: int, *, numa_node: int | None = None, lost: bool = False) -> Gpu:
    return Gpu(
        uuid=uuid_of_gpu(index),
        index=index,
        minor=index,
        pci_bus_id=f"00000000:{index + 1:02X}:00.0",
        numa_node=numa_node,
        product="Test GPU",
        memory_bytes=80 * GIB,
        compute_capability=(9, 0),
        state=GpuState.LOST if lost else GpuState.OK,
    )


def gpus(count: int, *, numa_nodes: int = 0) -> tuple[Gpu, ...]:
    """`count` GPUs, spread over `numa_nodes`; 0 for a platform that names none."""
    return tuple(
        a_gpu(index, numa_node=index * numa_nodes // count if numa_nodes else None)
        for index in range(count)
    )


def sharing(replicas: int, *, rename: bool = False, fail: bool = False) -> Plan:
    """A plan that shares every GPU alike."""
    return Plan(
        TimeSlicing(
            resources=(SharedResource(GPU_RESOURCE, replicas),),
            rename_by_default=rename,
            fail_requests_greater_than_one=fail,
        )
    )


def a_resource(
    count: int, replicas: int, *, numa_nodes: int = 0, fail: bool = False, rename: bool = False
) -> Resource:
    inventory = build_inventory(
        gpus(count, numa_nodes=numa_nodes), sharing(replicas, fail=fail, rename=rename)
    )
    (resource,) = inventory.resources
    return resource


def uneven_resource(sizes: Sequence[int]) -> Resource:
    """A resource whose GPUs have different numbers of devices."""
    whole = a_resource(len(sizes), max(2, *sizes, 2))
    devices = tuple(
        device for device in whole.devices if (device.replica or 0) < sizes[device.gpu_index]
    )
    return replace(whole, devices=devices)


def ids(resource: Resource) -> tuple[str, ...]:
    return tuple(device.id for device in resource.devices)


def by_id(resource: Resource) -> dict[str, Device]:
    return {device.id: device for device in resource.devices}


def a_probe(
    *,
    reachable: bool = True,
    action: RecoveryAction = RecoveryAction.NONE,
    remap_failed: bool = False,
    epoch: str = "epoch-0",
) -> Probe:
    return Probe(
        reachable=reachable,
        recovery_action=action,
        row_remap_pending=False,
        row_remap_failed=remap_failed,
        uncorrectable_ecc=0,
        epoch=epoch,
    )


PLAIN = NodePlan(Plan(), InjectionPlan(), "distributed", HealthPolicy())
"""Every GPU as one device."""

EMPTY_VIEW = NodeView(PLAIN)
"""A node before its first update."""
