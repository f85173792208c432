"""GPU instances of a partitioned GPU: where they are in its eight memory slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hal import GIB
from sim.gpu.profiles import MEMORY_SLICES, slices_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hal import MigDevice
    from sim.gpu.gpu import SimulatedGpu
    from sim.gpu.profiles import MigProfile, Profile

_STARTS: Mapping[int, Sequence[int]] = {
    1: (0, 1, 2, 3, 4, 5, 6),
    2: (0, 2, 4, 6),
    4: (0, 4),
    8: (0,),
}
"""By the number of memory slices, from NVIDIA's MIG user guide."""


class InUse(Exception):
    """Processes, or instances inside, are in the way."""


class NoRoom(Exception):
    """There is no free place for another instance."""


@dataclass(frozen=True, slots=True)
class GpuInstance:
    """A part of a GPU, with or without a compute instance (which makes it a MIG device)."""

    id: int
    profile: str
    start: int
    size: int

    @property
    def slots(self) -> frozenset[int]:
        """The memory slices that it has."""
        return frozenset(range(self.start, self.start + self.size))


def width(mig: MigProfile, profile: Profile) -> int:
    """How many memory slices an instance takes."""
    named_gib = int(mig.profile.partition(".")[2].partition("gb")[0])
    slices = max(1, round(MEMORY_SLICES * named_gib * GIB / profile.memory_bytes))
    return next((size for size in _STARTS if size >= slices), MEMORY_SLICES)


def possible_starts(mig: MigProfile, profile: Profile) -> Sequence[int]:
    slices = slices_of(mig.profile)
    starts = _STARTS[width(mig, profile)]
    if slices == 4:
        return starts[:1]
    return starts[:3] if slices == 2 else starts


def free_starts(
    mig: MigProfile, profile: Profile, instances: Iterable[GpuInstance]
) -> Sequence[int]:
    """Where instances of the profile can be beside those that there are, and each other."""
    used = {slot for one in instances for slot in one.slots}
    size = width(mig, profile)
    found: list[int] = []
    for start in possible_starts(mig, profile):
        slots = set(range(start, start + size))
        if not slots & used:
            used |= slots
            found.append(start)
    return found


def placed(devices: Iterable[MigDevice], profile: Profile) -> dict[int, GpuInstance]:
    """The GPU instances of MIG devices by id, each at the first free place in this order."""
    by_name = {mig.profile: mig for mig in profile.mig}
    found: dict[int, GpuInstance] = {}
    for device in devices:
        mig = by_name[device.profile]
        start = next(
            iter(free_starts(mig, profile, found.values())), possible_starts(mig, profile)[0]
        )
        instance = GpuInstance(device.gpu_instance, device.profile, start, width(mig, profile))
        found[device.gpu_instance] = instance
    return found


def next_id(instances: Mapping[int, GpuInstance]) -> int:
    return next(number for number in range(1, len(instances) + 2) if number not in instances)


def device_of(gpu: SimulatedGpu, instance: GpuInstance) -> MigDevice | None:
    """The MIG device that a GPU instance is; None without a compute instance."""
    devices = (one for one in gpu.identity.mig_devices if one.gpu_instance == instance.id)
    return next(devices, None)
