"""What a recorded GPU is where it differs from its model, as a scenario spells it.

Recordings are made in `sim.study.recorder`; a scenario written by hand may use these keys as well.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from sim.gpu.faults import Part

if TYPE_CHECKING:
    from hal import Gpu, MigDevice
    from sim.gpu.profiles import Profile


class RecordedMig(Part):
    """A MIG device of a recorded GPU, in the order of the group's `mig`."""

    uuid: str | None = None
    gpu_instance: Annotated[int, Field(ge=0)]
    compute_instance: Annotated[int, Field(ge=0)] = 0
    memory_bytes: Annotated[int, Field(ge=0)] | None = None


class RecordedGpu(Part):
    """Who a single GPU is, where that is known: what is left out is as its model has it.

    Without `uuid` and `pci_bus_id` the node makes its own, from its seed; without `numa_node` the
    platform names none. `mig` tells more of the devices that the group's `mig` names.
    """

    uuid: Annotated[str, Field(min_length=1)] | None = None
    pci_bus_id: str | None = None
    minor: Annotated[int, Field(ge=0)] | None = None
    numa_node: Annotated[int, Field(ge=0)] | None = None
    product: str | None = None
    memory_bytes: Annotated[int, Field(gt=0)] | None = None
    power_limit_w: Annotated[float, Field(gt=0)] | None = None
    mig: tuple[RecordedMig, ...] = ()


def profile_of(profile: Profile, recorded: RecordedGpu | None) -> Profile:
    """The model's profile with what is known better of this one GPU."""
    if recorded is None:
        return profile
    changes: dict[str, object] = {}
    if recorded.product is not None:
        changes["product"] = recorded.product
    if recorded.memory_bytes is not None:
        changes["memory_bytes"] = recorded.memory_bytes
    if recorded.power_limit_w is not None:
        power = {"default_limit": recorded.power_limit_w}
        changes["power_w"] = profile.power_w.model_copy(update=power)
    return profile.model_copy(update=changes)


def identity_of(gpu: Gpu, recorded: RecordedGpu | None) -> Gpu:
    """The GPU with what is known better of it."""
    if recorded is None:
        return gpu
    return replace(
        gpu,
        uuid=recorded.uuid or gpu.uuid,
        pci_bus_id=recorded.pci_bus_id or gpu.pci_bus_id,
        minor=gpu.minor if recorded.minor is None else recorded.minor,
        numa_node=recorded.numa_node,
    )


def partition_of(gpu: Gpu, recorded: RecordedGpu | None) -> Gpu:
    """The partitioned GPU with what is known better of its MIG devices."""
    if recorded is None or not recorded.mig:
        return gpu
    known = dict(enumerate(recorded.mig))
    return replace(
        gpu, mig_devices=tuple(_mig(mig, known.get(mig.index)) for mig in gpu.mig_devices)
    )


def _mig(mig: MigDevice, recorded: RecordedMig | None) -> MigDevice:
    if recorded is None:
        return mig
    return replace(
        mig,
        uuid=recorded.uuid or mig.uuid,
        gpu_instance=recorded.gpu_instance,
        compute_instance=recorded.compute_instance,
        memory_bytes=mig.memory_bytes if recorded.memory_bytes is None else recorded.memory_bytes,
    )
