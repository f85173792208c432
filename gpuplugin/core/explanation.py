"""Why each GPU of a node is advertised as it is, or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from gpuplugin.core.inventory import mig_resource_name, plan_devices
from gpuplugin.core.sharing import first_match

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gpuplugin.core.inventory import Device, Plan
    from gpuplugin.core.sharing import SharedResource
    from hal import Gpu

KeyPath: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Reason:
    """A key of the configuration (none: a default), and what it does to the device."""

    key: KeyPath
    text: str


@dataclass(frozen=True, slots=True)
class Explained:
    """A GPU or MIG device: what it is advertised as (nothing: not at all), and why."""

    index: str
    uuid: str
    product: str
    resource: str
    replicas: int
    reasons: tuple[Reason, ...]


def explain(gpus: Sequence[Gpu], plan: Plan) -> tuple[Explained, ...]:
    """Every GPU, and every MIG device that is advertised, by index.

    Raises:
        InventoryError: as `plan_devices`.
    """
    planned = plan_devices(gpus, plan)
    devices: dict[str, list[tuple[Device, str, int]]] = {}
    for name, entries in planned.resources.items():
        for device, replicas in entries:
            devices.setdefault(device.gpu_uuid, []).append((device, name, replicas))
    explained: list[Explained] = []
    for gpu in sorted(gpus, key=lambda one: one.index):
        mine = sorted(devices.get(gpu.uuid, ()), key=lambda one: one[0].order)
        if not mine:
            reasons = tuple(_why_not(gpu, plan))
            explained.append(Explained(str(gpu.index), gpu.uuid, gpu.product, "", 0, reasons))
        for device, name, replicas in mine:
            product = f"MIG {device.mig.profile}" if device.mig else gpu.product
            position = planned.entries.get(device.uuid)
            reasons = (_name(gpu, device, plan), *_sharing(device, position, plan))
            explained.append(Explained(device.index, device.uuid, product, name, replicas, reasons))
    return tuple(explained)


def _why_not(gpu: Gpu, plan: Plan) -> Iterator[Reason]:
    if (excluded := plan.gpu_filter.excluded_by(gpu)) is not None:
        yield Reason(("gpus", "exclude"), f"{excluded} excludes it")
    elif not plan.gpu_filter.admits(gpu):
        yield Reason(("gpus", "include"), "does not name it")
    elif gpu.mig_enabled:
        yield Reason(
            ("flags", "migStrategy"), "it is in MIG mode without a MIG device to advertise"
        )
    else:
        yield Reason(("flags", "migStrategy"), "its state is not known yet")


def _name(gpu: Gpu, device: Device, plan: Plan) -> Reason:
    if device.mig is None:
        name = first_match(plan.gpu_names, gpu.product)
        if name is None:
            return Reason((), "a whole GPU is nvidia.com/gpu")
        return Reason(("resources", "gpus"), f"its product {gpu.product} is {name}")
    if plan.mig_strategy == "single":
        return Reason(("flags", "migStrategy"), "single: a MIG device is nvidia.com/gpu")
    name = first_match(plan.mig_names, device.mig.profile)
    if name is None:
        usual = mig_resource_name(device.mig.profile)
        return Reason(("flags", "migStrategy"), f"mixed: a MIG device is {usual}")
    return Reason(("resources", "mig"), f"its profile {device.mig.profile} is {name}")


def _sharing(device: Device, position: int | None, plan: Plan) -> Iterator[Reason]:
    path: KeyPath = ("sharing", "timeSlicing", "resources")
    if position is None:
        yield Reason(path, "no entry shares it")
        return
    entry = plan.sharing.resources[position]
    name = plan.sharing.advertised_name(entry)
    renamed = f" as {name}" if name != entry.name else ""
    shared = f"{entry.replicas} replicas" if entry.replicas > 1 else "not shared"
    yield Reason((*path, position), f"{_selected(entry, device)}: {shared}{renamed}")


def _selected(entry: SharedResource, device: Device) -> str:
    if entry.selection.ids is not None:
        return f"lists {', '.join(sorted(entry.selection.ids & device.names))}"
    if entry.selection.count is not None:
        return f"takes the first {entry.selection.count} of {entry.name}"
    return f"takes all of {entry.name}"
