"""The simulated node: GPUs on one simpy environment, driven by a scenario and one seed.

Model time is the environment's clock in seconds. Who advances it (real time: `sim.realtime`) and
who looks (`sim.backend`) is elsewhere; nothing here locks or sleeps.
"""

from __future__ import annotations

import random
import uuid as uuids
from dataclasses import replace
from typing import TYPE_CHECKING

import simpy

from hal import Gpu, Link, LinkKind, MigDevice, UnknownGpu
from sim.gpu import SimulatedGpu
from sim.profiles import load_profile

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from hal import Event
    from sim.profiles import Profile
    from sim.scenario import EccFault, LostFault, Recovery, Scenario, TimedHappening, XidFault

FIRST_PID = 4001


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
    index = 0
    for group in scenario.gpus:
        profile = load_profile(group.model)
        numa_nodes = group.numa_nodes or min(2, group.count)
        for position in range(group.count):
            numa_node = position * numa_nodes // group.count
            identity = _identity(profile, index, numa_node, generator)
            if group.mig is not None:
                identity = _partitioned(identity, group.mig, profile, generator)
            yield SimulatedGpu(identity, profile)
            index += 1


def _identity(profile: Profile, index: int, numa_node: int, generator: random.Random) -> Gpu:
    unique = uuids.UUID(int=generator.getrandbits(128), version=4)
    return Gpu(
        uuid=f"GPU-{unique}",
        index=index,
        minor=index,
        pci_bus_id=_bus_id(profile, index),
        numa_node=numa_node,
        product=profile.product,
        memory_bytes=profile.memory_bytes,
        compute_capability=profile.compute_capability,
    )


def _partitioned(
    gpu: Gpu, mig_profiles: Sequence[str], profile: Profile, generator: random.Random
) -> Gpu:
    memory_mib = {one.profile: one.memory_mib or 0 for one in profile.mig}
    devices = tuple(
        MigDevice(
            uuid=f"MIG-{uuids.UUID(int=generator.getrandbits(128), version=4)}",
            index=index,
            gpu_instance=index + 1,
            compute_instance=0,
            profile=name,
            memory_bytes=memory_mib[name] * 1024**2,
            device_nodes=_mig_nodes(gpu.index, index + 1),
        )
        for index, name in enumerate(mig_profiles)
    )
    return replace(gpu, mig_enabled=True, mig_devices=devices)


def _mig_nodes(gpu_minor: int, gpu_instance: int) -> tuple[str, ...]:
    """The driver numbers capabilities so: 135 for each GPU, 9 for each GPU instance, from 3 on."""
    access = 3 + 135 * gpu_minor + 9 * gpu_instance
    return (
        f"/dev/nvidia{gpu_minor}",
        f"/dev/nvidia-caps/nvidia-cap{access}",
        f"/dev/nvidia-caps/nvidia-cap{access + 1}",
    )


def _bus_id(profile: Profile, index: int) -> str:
    """The bus id of a real node of this model where one was captured, else a made-up one."""
    if index < len(profile.bus_ids):
        return profile.bus_ids[index]
    return f"{index // 32:08X}:{(index % 32) * 8 + 1:02X}:00.0"
