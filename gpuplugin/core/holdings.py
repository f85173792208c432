"""What pods hold already, and what must not be offered because of it. Pure.

A GPU that one pod holds for itself must not be offered as shared, nor a shared one as whole: its
devices are withheld (Unhealthy to the kubelet) until the pods that hold the other form have ended.
That happens when a configuration changes, and when one that names GPUs by index is read after the
driver has numbered them anew. With DRA nothing is offered that a pod holds by a device plugin.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from gpuplugin.core.sharing import is_replica_id, uuid_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gpuplugin.core.inventory import Inventory, Plan
    from gpuplugin.core.usage import Holding
    from hal import Gpu


def withheld(inventory: Inventory, holdings: Iterable[Holding]) -> Mapping[str, str]:
    """GPUs and MIG devices that are offered in one form and held in the other: why, by UUID."""
    shared = {
        device.uuid: device.replica is not None
        for resource in inventory.resources
        for device in resource.devices
    }
    reasons: dict[str, str] = {}
    for holding in holdings:
        for device_id in holding.device_ids:
            uuid = uuid_of(device_id)
            if uuid in shared and is_replica_id(device_id) is not shared[uuid]:
                held, offered = ("whole", "shared") if shared[uuid] else ("shared", "whole")
                pod = f"{holding.pod.namespace}/{holding.pod.name}"
                reasons[uuid] = f"pod {pod} holds it {held}, and it is configured as {offered}"
    return MappingProxyType(reasons)


def held_by_plugin(inventory: Inventory, holdings: Iterable[Holding]) -> Mapping[str, str]:
    """GPUs and MIG devices that pods hold by the device-plugin API: why, by UUID.

    With DRA the scheduler knows nothing of these pods: it would give the same GPU out again.
    """
    listed = {device.uuid for resource in inventory.resources for device in resource.devices}
    return MappingProxyType(
        {
            uuid: f"pod {one.pod.namespace}/{one.pod.name} holds it by a device plugin"
            for one in holdings
            for uuid in map(uuid_of, one.device_ids)
            if uuid in listed and not one.by_claim
        }
    )


def holders(gpu: Gpu, holdings: Iterable[Holding]) -> tuple[str, ...]:
    """The pods (`namespace/name`, sorted) that hold a GPU or a MIG device of it."""
    wanted = {gpu.uuid, *(mig.uuid for mig in gpu.mig_devices)}
    return tuple(
        sorted(
            {
                f"{one.pod.namespace}/{one.pod.name}"
                for one in holdings
                if any(uuid_of(device_id) in wanted for device_id in one.device_ids)
            }
        )
    )


def selected_by_index(plan: Plan, gpus: Sequence[Gpu]) -> Mapping[str, str]:
    """What each index that the configuration selects by (`0`, MIG `0:1`) means now, by UUID."""
    uuids = {str(gpu.index): gpu.uuid for gpu in gpus}
    uuids |= {f"{gpu.index}:{mig.index}": mig.uuid for gpu in gpus for mig in gpu.mig_devices}
    terms = {*plan.gpu_filter.include, *plan.gpu_filter.exclude}
    for entry in plan.sharing.resources:
        terms |= entry.selection.ids or frozenset()
    return MappingProxyType({term: uuids[term] for term in sorted(terms & uuids.keys())})


def moved(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """Texts for indices that mean another GPU or MIG device than they did."""
    return tuple(
        f"index {index} of the configuration was {before[index]} and is {uuid} now: the driver has "
        "numbered the GPUs anew; select by UUID ('gpuplugin devices' lists them)"
        for index, uuid in now.items()
        if before.get(index, uuid) != uuid
    )
