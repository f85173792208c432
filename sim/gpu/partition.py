"""MIG: which partitions a GPU model allows, and the devices of a partitioned GPU."""

from __future__ import annotations

import uuid as uuids
from dataclasses import replace
from typing import TYPE_CHECKING

from hal import MigDevice

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from hal import Gpu
    from sim.gpu.profiles import MigProfile, Profile

GIB = 1024**3
MIB = 1024**2
COMPUTE_SLICES = 7
MEMORY_SLICES = 8
"""Of every GPU that can be partitioned, as NVIDIA's MIG user guide counts them."""


class CannotPartition(Exception):
    """The GPU model does not allow these MIG devices; the text says why."""


def check_partition(model: str, profile: Profile, wanted: Sequence[str]) -> None:
    """Known MIG profiles only, and no more slices than a GPU has.

    Raises:
        CannotPartition: with the MIG profiles that there are; it calls the GPU `model`.
    """
    known = [one.profile for one in profile.mig]
    for name in wanted:
        if name not in known:
            raise CannotPartition(
                f"{model} has no MIG profile {name!r}; known: {', '.join(known) or 'none'}"
            )
    slices = sum(int(name.partition("g.")[0]) for name in wanted)
    if slices > COMPUTE_SLICES:
        raise CannotPartition(
            f"the MIG profiles of {model} take {slices} slices, a GPU has {COMPUTE_SLICES}"
        )


def partitioned(
    gpu: Gpu, wanted: Sequence[str] | None, profile: Profile, generator: random.Random
) -> Gpu:
    """The GPU in MIG mode with new devices of the `wanted` MIG profiles; None turns MIG off.

    The MIG profiles are allowed: see `check_partition`. UUIDs are the generator's next.
    """
    if wanted is None:
        return replace(gpu, mig_enabled=False, mig_devices=())
    memory_bytes = {one.profile: instance_memory_bytes(one, profile) for one in profile.mig}
    devices = tuple(
        MigDevice(
            uuid=f"MIG-{uuids.UUID(int=generator.getrandbits(128), version=4)}",
            index=index,
            gpu_instance=index + 1,
            compute_instance=0,
            profile=name,
            memory_bytes=memory_bytes[name],
            device_nodes=_device_nodes(gpu.index, index + 1),
        )
        for index, name in enumerate(wanted)
    )
    return replace(gpu, mig_enabled=True, mig_devices=devices)


def instance_memory_bytes(mig: MigProfile, profile: Profile) -> int:
    """Memory of an instance; where no source gives it, its memory slices' share of the GPU's.

    A GPU has eight memory slices. How many an instance has is derived from the GB in its name.
    """
    if mig.memory_mib is not None:
        return mig.memory_mib * MIB
    named_gib = int(mig.profile.partition(".")[2].partition("gb")[0])
    slices = round(MEMORY_SLICES * named_gib * GIB / profile.memory_bytes)
    return profile.memory_bytes * slices // MEMORY_SLICES


def _device_nodes(gpu_minor: int, gpu_instance: int) -> tuple[str, ...]:
    """The driver numbers capabilities so: 135 for each GPU, 9 for each GPU instance, from 3 on."""
    access = 3 + 135 * gpu_minor + 9 * gpu_instance
    return (
        f"/dev/nvidia{gpu_minor}",
        f"/dev/nvidia-caps/nvidia-cap{access}",
        f"/dev/nvidia-caps/nvidia-cap{access + 1}",
    )
