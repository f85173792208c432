"""The GPUs of a node as its scenario describes them: identity, physics, schedulers and memory."""

from __future__ import annotations

import itertools
import random
import uuid as uuids
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from hal import PCI_3D, PCI_VGA, Gpu
from hal.nvml.kernelfiles import canonical_bus_id
from sim.gpu.profiles import mig_device, partitioned, slice_parameters
from sim.gpu.schedulers import Exclusive, Mps
from sim.gpu.tenancy import Memory, Tenancy
from sim.gpu.timeslicing import TimeSlicing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    import simpy

    from hal import MigDevice
    from sim.gpu.profiles import Profile
    from sim.gpu.scheduler import Scheduler
    from sim.node.scenario import GpuGroup, RecordedGpu, RecordedMig, Scenario

    Log: TypeAlias = Callable[[str, dict[str, object]], None]


class Identities:
    """Makes identities; the same calls on the same scenario, seed and node give the same ones.

    Nodes with different names share no UUID, whatever their scenarios, but for those that scenarios
    give. Their bus ids differ as well: a machine counts its buses over all that is plugged in.
    """

    def __init__(self, scenario: Scenario, node: str = "") -> None:
        self._scenario = scenario
        self._generator = random.Random(f"gpuplugin/{scenario.seed}")
        self._bus_shift = 0
        if node:
            self._generator = random.Random(f"gpuplugin/{scenario.seed}/{node}")
            self._bus_shift = self._generator.randrange(_BUS_SHIFTS)

    def of_the_node(self) -> Iterator[tuple[Gpu, Profile]]:
        """The GPUs that the scenario names, by index."""
        groups = [
            (group, _profile_of(self._scenario.profile_of(group), group.recorded))
            for group in self._scenario.gpus
        ]
        recorded = [group.recorded.pci_bus_id for group, _ in groups if group.recorded]
        bus_ids = _bus_ids(
            [profile for group, profile in groups for _ in range(group.count)],
            {canonical_bus_id(bus_id) for bus_id in recorded if bus_id is not None},
            self._bus_shift,
        )
        index = 0
        for group, profile in groups:
            numa_nodes = group.numa_nodes or min(2, group.count)
            for position in range(group.count):
                gpu = Gpu(
                    uuid=self._uuid(),
                    index=index,
                    minor=index,
                    pci_bus_id=next(bus_ids),
                    numa_node=position * numa_nodes // group.count,
                    product=profile.product,
                    memory_bytes=profile.memory_bytes,
                    compute_capability=profile.compute_capability,
                    compute_mode=group.compute_mode,
                    mig_capable=bool(profile.mig),
                    pci_class=PCI_VGA if "GeForce" in profile.product else PCI_3D,
                )
                gpu = self.partitioned(_identity_of(gpu, group.recorded), group.mig, profile)
                yield _partition_of(gpu, group.recorded), profile
                index += 1

    def partitioned(self, gpu: Gpu, mig: Sequence[str] | None, profile: Profile) -> Gpu:
        return partitioned(gpu, mig, profile, self._generator)

    def mig_device(
        self, gpu: Gpu, name: str, place: tuple[int, int], profile: Profile
    ) -> MigDevice:
        """A new MIG device; `place` is its index and its GPU instance."""
        return mig_device(gpu, name, place, profile, self._generator)

    def another(self, gpu: Gpu, profile: Profile) -> Gpu:
        """A GPU of the same model in the same place, partitioned alike: only UUIDs differ."""
        mig = [device.profile for device in gpu.mig_devices] if gpu.mig_enabled else None
        return self.partitioned(replace(gpu, uuid=self._uuid()), mig, profile)

    def _uuid(self) -> str:
        return f"GPU-{uuids.UUID(int=self._generator.getrandbits(128), version=4)}"


_BUS_SHIFTS = 6
"""Assumed: by how many buses nodes of one model differ. With all of them a bus number fits."""


def _bus_ids(profiles: Sequence[Profile], recorded: AbstractSet[str], shift: int) -> Iterator[str]:
    """A different bus id for each GPU: captured ones of its model first, then made-up ones.

    All but the `recorded` ones are `shift` buses further on; none of them is a recorded one.
    """
    captured = {_shifted(bus_id, shift) for one in profiles for bus_id in one.bus_ids}
    numbered = (f"{n // 32:08X}:{(n % 32) * 8 + 1 + shift:02X}:00.0" for n in itertools.count())
    made_up = (bus_id for bus_id in numbered if bus_id not in captured | recorded)
    given = set(recorded)
    for profile in profiles:
        shifted = (_shifted(bus_id, shift) for bus_id in profile.bus_ids)
        bus_id = next((one for one in shifted if one not in given), None) or next(made_up)
        given.add(bus_id)
        yield bus_id


def _shifted(bus_id: str, buses: int) -> str:
    domain, bus, rest = bus_id.split(":")
    return f"{domain}:{int(bus, 16) + buses:02X}:{rest}"


def tenancies_of(
    env: simpy.Environment, gpu: Gpu, profile: Profile, group: GpuGroup, log: Log
) -> dict[str, Tenancy]:
    """Empty tenancies by UUID: that of the GPU, or those of its MIG devices."""
    if not gpu.mig_enabled:
        memory = Memory(
            profile.memory_bytes,
            profile.memory_reserved_bytes or 0,
            oversubscribe=group.oversubscribe,
        )
        scheduler = _scheduler(group, profile)
        shares_faults = isinstance(scheduler, Mps)
        return {
            gpu.uuid: Tenancy(
                env,
                scheduler,
                memory,
                gpu.uuid,
                shares_faults=shares_faults,
                context_bytes=profile.context_bytes,
                log=log,
            )
        }
    sms = {one.profile: one.sm for one in profile.mig}
    return {
        device.uuid: Tenancy(
            env,
            _scheduler(group, profile),
            Memory(device.memory_bytes, oversubscribe=group.oversubscribe),
            device.uuid,
            compute_share=_share(sms.get(device.profile), profile.sm_count),
            context_bytes=profile.context_bytes,
            log=log,
        )
        for device in gpu.mig_devices
    }


def _scheduler(group: GpuGroup, profile: Profile) -> Scheduler:
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


def _profile_of(profile: Profile, recorded: RecordedGpu | None) -> Profile:
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


def _identity_of(gpu: Gpu, recorded: RecordedGpu | None) -> Gpu:
    if recorded is None:
        return gpu
    return replace(
        gpu,
        uuid=recorded.uuid or gpu.uuid,
        pci_bus_id=canonical_bus_id(recorded.pci_bus_id or gpu.pci_bus_id),
        minor=gpu.minor if recorded.minor is None else recorded.minor,
        numa_node=recorded.numa_node,
    )


def _partition_of(gpu: Gpu, recorded: RecordedGpu | None) -> Gpu:
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
