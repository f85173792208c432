"""Where GPU instances sit in the memory of a GPU: it has eight memory slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.gpu.partition import GIB, MEMORY_SLICES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hal import MigDevice
    from sim.gpu.profiles import MigProfile, Profile

_STARTS: Mapping[int, Sequence[int]] = {
    1: (0, 1, 2, 3, 4, 5, 6),
    2: (0, 2, 4, 6),
    4: (0, 4),
    8: (0,),
}
"""By the number of memory slices, from NVIDIA's MIG user guide."""


def width(mig: MigProfile, profile: Profile) -> int:
    """How many memory slices an instance takes."""
    named_gib = int(mig.profile.partition(".")[2].partition("gb")[0])
    slices = max(1, round(MEMORY_SLICES * named_gib * GIB / profile.memory_bytes))
    return next((size for size in _STARTS if size >= slices), MEMORY_SLICES)


def possible_starts(mig: MigProfile, profile: Profile) -> Sequence[int]:
    """Where an instance may begin."""
    slices = int(mig.profile.partition("g.")[0])
    starts = _STARTS[width(mig, profile)]
    if slices == 4:
        return starts[:1]
    return starts[:3] if slices == 2 else starts


def placements(devices: Sequence[MigDevice], profile: Profile) -> Mapping[int, tuple[int, int]]:
    """Start and size by GPU instance id, each at the first place that is free in this order."""
    by_name = {mig.profile: mig for mig in profile.mig}
    used: set[int] = set()
    found: dict[int, tuple[int, int]] = {}
    for device in devices:
        mig = by_name[device.profile]
        size = width(mig, profile)
        starts = possible_starts(mig, profile)
        start = next((one for one in starts if used.isdisjoint(range(one, one + size))), starts[0])
        used.update(range(start, start + size))
        found[device.gpu_instance] = (start, size)
    return found
