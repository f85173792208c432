"""From GPUs and the user's plan to what is advertised: resources and their device ids.

An inventory has the devices that exist, not their health.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from gpuplugin.core.sharing import GpuFilter, NamePattern, TimeSlicing, first_match, replica_id
from hal import ComputeMode, GpuState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gpuplugin.core.sharing import SharedResource
    from hal import Gpu, MigDevice

MigStrategy: TypeAlias = Literal["none", "single", "mixed"]

GPU_RESOURCE = "nvidia.com/gpu"
"""The resource that whole GPUs are advertised as, unless a pattern gives another name."""

MIG_RESOURCE_PREFIX = "nvidia.com/mig-"


Unit: TypeAlias = tuple[str, str | None]
"""The UUIDs of a GPU and, if it is one, of a MIG device of it: what has a health of its own."""


class InventoryError(Exception):
    """The GPUs cannot be advertised as the configuration wants it; the text names the reason."""


@dataclass(frozen=True, slots=True)
class Plan:
    sharing: TimeSlicing = TimeSlicing()
    mig_strategy: MigStrategy = "none"
    gpu_names: tuple[NamePattern, ...] = ()
    mig_names: tuple[NamePattern, ...] = ()
    gpu_filter: GpuFilter = GpuFilter()


@dataclass(frozen=True, slots=True)
class Device:
    """One advertised device: a GPU, a MIG device, or a time-sliced replica of either.

    `uuid` and `index` (`0`, MIG `0:1`) are how the container runtime knows it; `gpu_uuid` is the
    physical GPU whose faults it shares; `nodes` are its device nodes; `replica` is None for a
    device that is not shared.
    """

    id: str
    uuid: str
    index: str
    gpu_uuid: str
    gpu_index: int
    numa_node: int | None
    nodes: tuple[str, ...]
    mig: MigDevice | None = None
    replica: int | None = None

    @property
    def order(self) -> tuple[int, int, int]:
        """By GPU index, MIG device, replica: the order of everything that is listed."""
        return self.gpu_index, self.mig.index if self.mig else -1, self.replica or 0

    @property
    def unit(self) -> Unit:
        """What decides on its health."""
        return self.gpu_uuid, self.mig.uuid if self.mig else None

    @property
    def names(self) -> frozenset[str]:
        """Every way in which a configuration may name the device."""
        if self.mig is None:
            return frozenset({self.index, self.uuid})
        legacy = f"MIG-{self.gpu_uuid}/{self.mig.gpu_instance}/{self.mig.compute_instance}"
        return frozenset({self.index, self.uuid, legacy})


@dataclass(frozen=True, slots=True)
class Resource:
    name: str
    devices: tuple[Device, ...]
    fail_requests_greater_than_one: bool = False
    units: Mapping[Unit, int] = field(init=False, compare=False)
    """Devices of each GPU, or MIG device of it, in order."""

    def __post_init__(self) -> None:
        units: dict[Unit, int] = {}
        for device in self.devices:
            units[device.unit] = units.get(device.unit, 0) + 1
        object.__setattr__(self, "units", MappingProxyType(units))

    @property
    def shared(self) -> bool:
        return any(device.replica is not None for device in self.devices)

    @property
    def largest_replica_count(self) -> int:
        """Replicas of the device that has most; 1 where nothing is shared."""
        return 1 + max((device.replica or 0 for device in self.devices), default=0)


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything that the node advertises, ordered by resource name.

    `notes` are texts for the log: what was left out and why. `warnings` are about devices that are
    advertised and will disappoint.
    """

    resources: tuple[Resource, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def device_count(self) -> int:
        return sum(len(resource.devices) for resource in self.resources)


@dataclass(frozen=True, slots=True)
class Planned:
    """What will be advertised, not expanded yet: whole devices with their replicas, by name.

    `entries` has the positions of the entries that share devices, by the devices' UUIDs.
    """

    resources: Mapping[str, tuple[tuple[Device, int], ...]]
    fail_requests_greater_than_one: bool
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    entries: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


def build_inventory(gpus: Iterable[Gpu], plan: Plan) -> Inventory:
    """The inventory of a node; raises `InventoryError` as `plan_devices`."""
    return expand(plan_devices(gpus, plan))


def plan_devices(gpus: Iterable[Gpu], plan: Plan) -> Planned:
    """Which devices are advertised under which names, and how often each.

    A lost GPU stays in the plan, for it may be in use. The work does not grow with replicas.
    Raises InventoryError if MIG strategy `single` meets GPUs that are not alike.
    """
    present = sorted(gpus, key=lambda gpu: gpu.index)
    admitted = [gpu for gpu in present if plan.gpu_filter.admits(gpu)]
    notes = list(plan.gpu_filter.notes(present)) if present else []
    advertised: dict[str, list[tuple[Device, int]]] = {}
    entries: dict[str, int] = {}
    for name, devices in _unshared(admitted, plan, notes).items():
        for device, position in _entries(name, devices, plan.sharing, notes):
            target, replicas = name, 1
            if position is not None:
                entry = plan.sharing.resources[position]
                target, replicas = plan.sharing.advertised_name(entry), entry.replicas
                entries[device.uuid] = position
            advertised.setdefault(target, []).append((device, replicas))
    return Planned(
        resources=MappingProxyType(
            {
                name: tuple(sorted(devices, key=lambda entry: entry[0].order))
                for name, devices in sorted(advertised.items())
            }
        ),
        fail_requests_greater_than_one=plan.sharing.fail_requests_greater_than_one,
        notes=tuple(notes),
        warnings=tuple(_warnings(admitted, advertised.values())),
        entries=MappingProxyType(entries),
    )


def _warnings(
    gpus: Iterable[Gpu], advertised: Iterable[Iterable[tuple[Device, int]]]
) -> Iterable[str]:
    shared = {
        device.gpu_uuid for devices in advertised for device, replicas in devices if replicas > 1
    }
    for gpu in gpus:
        remedy = f"'nvidia-smi -c DEFAULT -i {gpu.index}'"
        if gpu.compute_mode is ComputeMode.PROHIBITED:
            yield f"GPU {gpu.index} is in compute mode prohibited: no pod can use it; {remedy}"
        elif gpu.compute_mode is ComputeMode.EXCLUSIVE_PROCESS and gpu.uuid in shared:
            yield (
                f"GPU {gpu.index} is shared and in compute mode exclusive-process: one pod gets "
                f"it, the others fail in CUDA; {remedy}, or do not share it"
            )


def expand(planned: Planned) -> Inventory:
    return Inventory(
        resources=tuple(
            Resource(
                name,
                tuple(one for device, count in devices for one in _replicas(device, count)),
                planned.fail_requests_greater_than_one,
            )
            for name, devices in planned.resources.items()
        ),
        notes=planned.notes,
        warnings=planned.warnings,
    )


def _unshared(gpus: Sequence[Gpu], plan: Plan, notes: list[str]) -> dict[str, list[Device]]:
    if plan.mig_strategy == "single" and any(gpu.mig_enabled for gpu in gpus):
        return {GPU_RESOURCE: _single_mig(gpus)}
    devices: dict[str, list[Device]] = {}
    for gpu in gpus:
        if plan.mig_strategy == "mixed" and gpu.mig_enabled:
            for name, device in _mixed_mig(gpu, plan, notes):
                devices.setdefault(name, []).append(device)
        else:
            name = first_match(plan.gpu_names, gpu.product) or GPU_RESOURCE
            devices.setdefault(name, []).append(_device(gpu))
    return devices


def _single_mig(gpus: Sequence[Gpu]) -> list[Device]:
    """All MIG devices of the node, which must be alike, as plain GPUs."""
    # The mode of a GPU that was lost before the first scan is not known: it is left out.
    gpus = [gpu for gpu in gpus if gpu.mig_enabled or gpu.state is GpuState.OK]
    plain = [str(gpu.index) for gpu in gpus if not gpu.mig_enabled]
    if plain:
        raise InventoryError(
            f"MIG strategy single: GPUs {', '.join(plain)} are not in MIG mode, the others are; "
            "use the strategy mixed, or put all GPUs into the same mode"
        )
    empty = [str(gpu.index) for gpu in gpus if not gpu.mig_devices]
    if empty:
        raise InventoryError(
            f"MIG strategy single: GPUs {', '.join(empty)} are in MIG mode without a MIG device; "
            "create MIG devices, or use the strategy mixed"
        )
    profiles = sorted({mig.profile for gpu in gpus for mig in gpu.mig_devices})
    if len(profiles) > 1:
        raise InventoryError(
            f"MIG strategy single: the MIG devices differ ({', '.join(profiles)}); "
            "use the strategy mixed, or create devices of one profile"
        )
    return [_device(gpu, mig) for gpu in gpus for mig in gpu.mig_devices]


def _mixed_mig(gpu: Gpu, plan: Plan, notes: list[str]) -> Iterable[tuple[str, Device]]:
    if not gpu.mig_devices:
        notes.append(f"GPU {gpu.index} is in MIG mode without a MIG device: nothing to advertise")
    for mig in gpu.mig_devices:
        name = first_match(plan.mig_names, mig.profile) or mig_resource_name(mig.profile)
        if name is None:
            notes.append(
                f"MIG device {mig.uuid} of GPU {gpu.index} is left out: its profile {mig.profile} "
                "has fewer compute than GPU slices, which has no resource name"
            )
            continue
        yield name, _device(gpu, mig)


def mig_resource_name(profile: str) -> str | None:
    """`nvidia.com/mig-1g.10gb.me` for `1g.10gb+me`; None for a compute instance (`1c.2g.10gb`)."""
    if "c." in profile.partition("g.")[0]:
        return None
    return MIG_RESOURCE_PREFIX + profile.replace("+", ".")


def _entries(
    name: str, devices: Sequence[Device], sharing: TimeSlicing, notes: list[str]
) -> Iterable[tuple[Device, int | None]]:
    """The devices of one resource, each with the position of the entry that shares it, if any.

    A device is shared by one entry at most: one that names it wins over one that counts, which
    wins over one that means all; among equals the later one.
    """
    left = list(devices)
    for position, entry in _by_precedence(sharing.resources, name):
        chosen = _choose(entry, left)
        if not chosen and not entry.selection.everything:
            notes.append(f"sharing of {name}: no device is left for {_described(entry)}")
        for device in chosen:
            left.remove(device)
            yield device, position
    yield from ((device, None) for device in left)


def _by_precedence(
    entries: Iterable[SharedResource], name: str
) -> list[tuple[int, SharedResource]]:
    def rank(entry: SharedResource) -> int:
        if entry.selection.ids is not None:
            return 0
        return 2 if entry.selection.everything else 1

    mine = [(position, entry) for position, entry in enumerate(entries) if entry.name == name]
    mine.reverse()
    return sorted(mine, key=lambda one: rank(one[1]))


def _choose(entry: SharedResource, left: Sequence[Device]) -> list[Device]:
    selection = entry.selection
    if selection.ids is not None:
        return [device for device in left if device.names & selection.ids]
    return list(left if selection.count is None else left[: selection.count])


def _described(entry: SharedResource) -> str:
    if entry.selection.ids is not None:
        return f"devices {', '.join(sorted(entry.selection.ids))}"
    return f"the first {entry.selection.count}"


def entries_without_effect(plan: Plan) -> Iterator[tuple[int, str]]:
    """Positions of sharing entries that share nothing (or less) on any node, each with why."""
    entries = plan.sharing.resources
    for position, entry in enumerate(entries):
        if problem := _never_matches(entry, plan):
            yield position, problem
            continue
        later = [
            (place, one)
            for place, one in enumerate(entries[position + 1 :], position + 1)
            if one.name == entry.name
        ]
        for place, other in reversed(later):
            if other.selection.everything and entry.selection.everything:
                whose = f"entry [{place}] is for all devices of {entry.name}, too, and is later"
                yield position, f"has no effect: {whose}"
                break
            both = (other.selection.ids or frozenset()) & (entry.selection.ids or frozenset())
            if both:
                names = ", ".join(sorted(both))
                yield position, f"does not get {names}: entry [{place}] names it, too, and is later"


def _never_matches(entry: SharedResource, plan: Plan) -> str:
    """Why an entry can match no device of any node, or nothing."""
    mig_names = {one.name for one in plan.mig_names}
    is_mig = entry.name.startswith(MIG_RESOURCE_PREFIX) or entry.name in mig_names
    if is_mig and plan.mig_strategy != "mixed":
        return (
            f"has no effect: {entry.name} is there with MIG strategy mixed, and it is "
            f"{plan.mig_strategy}"
        )
    gpu_names = {GPU_RESOURCE, *(one.name for one in plan.gpu_names)}
    if not is_mig and entry.name not in gpu_names:
        known = ", ".join(sorted(gpu_names | mig_names))
        return f"has no effect: no device is called {entry.name}; the configuration names {known}"
    ids = entry.selection.ids or frozenset()
    if plan.mig_strategy == "none" and ids and all(_is_mig_name(one) for one in ids):
        return "has no effect: it lists MIG devices only, and the MIG strategy is none"
    return ""


def _is_mig_name(name: str) -> bool:
    return ":" in name or name.startswith("MIG-")


def _replicas(device: Device, count: int) -> Iterable[Device]:
    if count == 1:
        yield device
        return
    for number in range(count):
        yield replace(device, id=replica_id(device.uuid, number), replica=number)


def _device(gpu: Gpu, mig: MigDevice | None = None) -> Device:
    unit = mig or gpu
    return Device(
        id=unit.uuid,
        uuid=unit.uuid,
        index=f"{gpu.index}:{mig.index}" if mig else str(gpu.index),
        gpu_uuid=gpu.uuid,
        gpu_index=gpu.index,
        numa_node=gpu.numa_node,
        nodes=unit.device_nodes,
        mig=mig,
    )
