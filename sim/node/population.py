"""Where tenants live on a GPU: a scheduler and a memory for it, or for each of its MIG devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from sim.gpu.compute.exclusive import Exclusive
from sim.gpu.compute.mps import Mps
from sim.gpu.compute.timeslicing import TimeSlicing
from sim.gpu.memory import Memory
from sim.gpu.physics import Physics
from sim.gpu.profiles import slice_parameters
from sim.gpu.tenancy import Tenancy
from sim.gpu.workloads.models import MemoryUse

if TYPE_CHECKING:
    from collections.abc import Callable

    import simpy

    from hal import Gpu
    from sim.gpu.compute.engine import Engine
    from sim.gpu.profiles import Profile
    from sim.node.scenario import GpuGroup

    Log: TypeAlias = Callable[[str, dict[str, object]], None]

DEFAULT_MEMORY = MemoryUse()


def physics_of(profile: Profile, group: GpuGroup) -> Physics:
    """The physics of a GPU of the group, cold."""
    return Physics(profile, group.cooling)


def tenancies_of(
    env: simpy.Environment, gpu: Gpu, profile: Profile, group: GpuGroup, log: Log
) -> dict[str, Tenancy]:
    """Empty tenancies by UUID: that of the GPU, or those of its MIG devices."""
    if not gpu.mig_enabled:
        memory = Memory(
            gpu.memory_bytes, profile.memory_reserved_bytes or 0, oversubscribe=group.oversubscribe
        )
        engine = _engine(group, profile)
        shares_faults = isinstance(engine, Mps)
        return {
            gpu.uuid: Tenancy(env, engine, memory, gpu.uuid, shares_faults=shares_faults, log=log)
        }
    sms = {one.profile: one.sm for one in profile.mig}
    return {
        device.uuid: Tenancy(
            env,
            _engine(group, profile),
            Memory(device.memory_bytes, oversubscribe=group.oversubscribe),
            device.uuid,
            compute_share=_share(sms.get(device.profile), profile.sm_count),
            log=log,
        )
        for device in gpu.mig_devices
    }


def _engine(group: GpuGroup, profile: Profile) -> Engine:
    match group.mechanism:
        case "time-slicing":
            return TimeSlicing(slice_parameters(profile))
        case "mps":
            return Mps()
        case "exclusive":
            return Exclusive()


def _share(sms: int | None, all_sms: int | None) -> float:
    """A MIG device's share of the SMs; where no source gives it, all of them."""
    return sms / all_sms if sms and all_sms else 1.0
