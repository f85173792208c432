"""The simulated node: GPUs on one simpy environment, driven by a scenario and one seed.

Model time is the environment's clock in seconds. Who advances it (real time: `sim.realtime`) and
who looks (`sim.backend`) is elsewhere; nothing here locks or sleeps.
"""

from __future__ import annotations

import itertools
import random
import uuid as uuids
from dataclasses import replace
from typing import TYPE_CHECKING

import simpy

from hal import Gpu, Link, LinkKind, MigDevice, UnknownGpu
from sim.gpu import GIB, SimulatedGpu
from sim.profiles import load_profile

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from hal import Event
    from sim.profiles import MigProfile, Profile
    from sim.scenario import EccFault, LostFault, Recovery, Scenario, TimedHappening, XidFault

FIRST_PID = 4001
MIB = 1024**2
MEMORY_SLICES = 8
"""Of every GPU that can be partitioned, as NVIDIA's MIG user guide counts them."""


class SimulatedNode:
    """GPUs, tenants and faults; `env.now` is the model time."""

    def __init__(self, scenario: Scenario) -> None:
        self.env = simpy.Environment()
        self.scenario = scenario
        self.gpus: dict[str, SimulatedGpu] = {
            gpu.identity.uuid: gpu for gpu in _make_gpus(scenario)
        }
        self._events: list[Event] = []
        by_index = list(self.gpus.values())
        for number, tenant in enumerate(scenario.tenants):
            by_index[tenant.gpu].tenants.append((FIRST_PID + number, tenant))
        for happening in scenario.happenings:
            gpu = by_index[happening.gpu]
            self.env.process(self._happen_later(gpu, happening))

    def advance(self, now_s: float) -> None:
        """Let everything happen that is due by `now_s`, which becomes the present."""
        if now_s > self.env.now:
            self.env.run(until=now_s)
        # run() leaves its own stop event scheduled for the present; peek() would show it for ever.
        while self.env.peek() <= self.env.now:
            self.env.step()

    def gpu(self, uuid: str) -> SimulatedGpu:
        """The GPU of a UUID.

        Raises:
            UnknownGpu: this node has none.
        """
        try:
            return self.gpus[uuid]
        except KeyError:
            raise UnknownGpu(uuid) from None

    def find(self, index_or_uuid: str) -> SimulatedGpu:
        """The GPU that a person named, by index or UUID.

        Raises:
            UnknownGpu: this node has none.
        """
        for gpu in self.gpus.values():
            if index_or_uuid in (gpu.identity.uuid, str(gpu.identity.index)):
                return gpu
        raise UnknownGpu(index_or_uuid)

    def befall(self, gpu: SimulatedGpu, what: XidFault | EccFault | LostFault | Recovery) -> None:
        """Let something befall a GPU now."""
        self._events.extend(gpu.suffer(what, self.env.now))

    def take_events(self) -> tuple[Event, ...]:
        """What the driver reported since the last call."""
        taken, self._events = tuple(self._events), []
        return taken

    @property
    def has_events(self) -> bool:
        """True if there is something to take."""
        return bool(self._events)

    def links(self) -> dict[tuple[str, str], Link]:
        """PCIe paths by NUMA node. GPUs behind an NVSwitch have no direct NVLink to each other."""
        listed = [gpu.identity for gpu in self.gpus.values() if not gpu.lost]
        return {
            (one.uuid, other.uuid): Link(
                LinkKind.SAME_CPU if one.numa_node == other.numa_node else LinkKind.CROSS_CPU
            )
            for one in listed
            for other in listed
            if one.uuid != other.uuid
        }

    def _happen_later(
        self, gpu: SimulatedGpu, happening: TimedHappening
    ) -> Generator[simpy.Event, object, None]:
        yield self.env.timeout(happening.at_s)
        self.befall(gpu, happening.what)


def _make_gpus(scenario: Scenario) -> Iterator[SimulatedGpu]:
    generator = random.Random(f"gpuplugin/{scenario.seed}")
    groups = [(group, load_profile(group.model)) for group in scenario.gpus]
    bus_ids = _bus_ids([profile for group, profile in groups for _ in range(group.count)])
    index = 0
    for group, profile in groups:
        numa_nodes = group.numa_nodes or min(2, group.count)
        for position in range(group.count):
            numa_node = position * numa_nodes // group.count
            identity = _identity(profile, index, next(bus_ids), numa_node, generator)
            if group.mig is not None:
                identity = _partitioned(identity, group.mig, profile, generator)
            yield SimulatedGpu(identity, profile)
            index += 1


def _identity(
    profile: Profile, index: int, bus_id: str, numa_node: int, generator: random.Random
) -> Gpu:
    unique = uuids.UUID(int=generator.getrandbits(128), version=4)
    return Gpu(
        uuid=f"GPU-{unique}",
        index=index,
        minor=index,
        pci_bus_id=bus_id,
        numa_node=numa_node,
        product=profile.product,
        memory_bytes=profile.memory_bytes,
        compute_capability=profile.compute_capability,
    )


def _partitioned(
    gpu: Gpu, mig_profiles: Sequence[str], profile: Profile, generator: random.Random
) -> Gpu:
    memory_bytes = {one.profile: _mig_memory_bytes(one, profile) for one in profile.mig}
    devices = tuple(
        MigDevice(
            uuid=f"MIG-{uuids.UUID(int=generator.getrandbits(128), version=4)}",
            index=index,
            gpu_instance=index + 1,
            compute_instance=0,
            profile=name,
            memory_bytes=memory_bytes[name],
            device_nodes=_mig_nodes(gpu.index, index + 1),
        )
        for index, name in enumerate(mig_profiles)
    )
    return replace(gpu, mig_enabled=True, mig_devices=devices)


def _mig_memory_bytes(mig: MigProfile, profile: Profile) -> int:
    """Memory of an instance; where no source gives it, its memory slices' share of the GPU's.

    A GPU has eight memory slices. How many an instance has is derived from the GB in its name.
    """
    if mig.memory_mib is not None:
        return mig.memory_mib * MIB
    named_gib = int(mig.profile.partition(".")[2].partition("gb")[0])
    slices = round(MEMORY_SLICES * named_gib * GIB / profile.memory_bytes)
    return profile.memory_bytes * slices // MEMORY_SLICES


def _mig_nodes(gpu_minor: int, gpu_instance: int) -> tuple[str, ...]:
    """The driver numbers capabilities so: 135 for each GPU, 9 for each GPU instance, from 3 on."""
    access = 3 + 135 * gpu_minor + 9 * gpu_instance
    return (
        f"/dev/nvidia{gpu_minor}",
        f"/dev/nvidia-caps/nvidia-cap{access}",
        f"/dev/nvidia-caps/nvidia-cap{access + 1}",
    )


def _bus_ids(profiles: Sequence[Profile]) -> Iterator[str]:
    """A bus id for each GPU of a node, all different.

    Those of a real node of the model, where they were captured, come first, then made-up ones.
    """
    captured = {bus_id for profile in profiles for bus_id in profile.bus_ids}
    made_up = (bus_id for bus_id in _made_up_bus_ids() if bus_id not in captured)
    given: set[str] = set()
    for profile in profiles:
        free = (bus_id for bus_id in profile.bus_ids if bus_id not in given)
        bus_id = next(free, None) or next(made_up)
        given.add(bus_id)
        yield bus_id


def _made_up_bus_ids() -> Iterator[str]:
    for number in itertools.count():
        yield f"{number // 32:08X}:{(number % 32) * 8 + 1:02X}:00.0"
