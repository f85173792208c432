"""Who the GPUs of a simulated node are."""

from __future__ import annotations

import re
import uuid as uuids

import pytest

from hal import GpuState
from sim.gpu.faults import Failures, XidFault
from sim.gpu.profiles import load_profile, model_names
from sim.node.node import SimulatedNode
from sim.node.scenario import GpuGroup, RecordedGpu, Scenario
from sim.nvml.functions.inventory import serial
from tests.unit.sim.nodes import a_scenario


def test_the_same_seed_gives_the_same_node_another_seed_another() -> None:
    one, same, other = (SimulatedNode(a_scenario(seed=seed)) for seed in (1, 1, 2))

    assert list(one.gpus) == list(same.gpus)
    assert [gpu.identity for gpu in one.gpus.values()] == [
        gpu.identity for gpu in same.gpus.values()
    ]
    assert not set(one.gpus) & set(other.gpus)


def test_nodes_of_one_scenario_share_no_uuid_and_each_stays_as_it_is() -> None:
    scenario = Scenario(gpus=[GpuGroup(model="h100-sxm5-80gb", count=8, mig=["1g.10gb"])])
    names = ["", *(f"gpu-node-{number}" for number in range(40))]
    nodes = [SimulatedNode(scenario, name=name) for name in names]
    again = SimulatedNode(scenario, name=names[7])

    uuids = [uuid for node in nodes for uuid in devices_of(node)]
    serials = {serial(gpu) for node in nodes for gpu in node.present}
    assert len(set(uuids)) == len(uuids) == 41 * 16
    assert len(serials) == 41 * 8
    assert devices_of(again) == devices_of(nodes[7])
    bus_ids = [tuple(gpu.identity.pci_bus_id for gpu in node.present) for node in nodes]
    assert len(set(bus_ids)) > 1
    assert bus_ids[7] == tuple(gpu.identity.pci_bus_id for gpu in again.present)


def test_a_scenario_says_who_a_gpu_is_on_every_node() -> None:
    recorded = RecordedGpu(uuid="GPU-1", pci_bus_id="00000000:41:00.0")
    scenario = Scenario(gpus=[GpuGroup(model="t4", recorded=recorded)])
    nodes = [SimulatedNode(scenario, name=name) for name in ("", "a", "b")]

    assert [list(node.gpus) for node in nodes] == [["GPU-1"]] * 3
    assert {node.present[0].identity.pci_bus_id for node in nodes} == {"00000000:41:00.0"}


def test_nodes_of_one_scenario_fail_at_different_times() -> None:
    def when(name: str) -> list[float]:
        failures = Failures(mtbf_h=1.0, what=XidFault(xid=79))
        scenario = Scenario(gpus=[GpuGroup(model="t4", count=4)], failures=[failures])
        seen: list[float] = []
        node = SimulatedNode(scenario, lambda _kind, _facts: seen.append(node.now_s), name)
        node.advance(3600 * 8)
        return seen

    assert when("a") == when("a") != when("b")


def devices_of(node: SimulatedNode) -> list[str]:
    return [
        uuid
        for gpu in node.present
        for uuid in (gpu.identity.uuid, *(mig.uuid for mig in gpu.identity.mig_devices))
    ]


def test_uuids_look_like_nvidias() -> None:
    node = SimulatedNode(Scenario(gpus=[GpuGroup(model="t4", count=64)]))

    assert len(node.gpus) == 64
    for uuid in node.gpus:
        assert re.fullmatch(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", uuid)
        assert uuids.UUID(uuid.removeprefix("GPU-")).version == 4


@pytest.mark.parametrize("model", model_names())
def test_identities_follow_the_profile_and_differ(model: str) -> None:
    node = SimulatedNode(Scenario(gpus=[GpuGroup(model=model, count=40)]), name="node-6")
    identities = [gpu.identity for gpu in node.gpus.values()]
    profile = load_profile(model)

    assert [one.index for one in identities] == list(range(40))
    assert len({one.pci_bus_id for one in identities}) == 40
    for one in identities:
        assert re.fullmatch(r"[0-9A-F]{8}:[0-9A-F]{2}:[0-9A-F]{2}\.0", one.pci_bus_id)
        assert (one.product, one.memory_bytes) == (profile.product, profile.memory_bytes)
        assert one.state is GpuState.OK


def test_groups_of_different_models_have_different_buses() -> None:
    groups = [
        GpuGroup(model=model, count=8) for model in ("h100-sxm5-80gb", "a100-sxm4-80gb", "t4")
    ]
    node = SimulatedNode(Scenario(gpus=groups))

    buses = [gpu.identity.pci_bus_id for gpu in node.gpus.values()]
    assert len(set(buses)) == len(buses) == 24


@pytest.mark.parametrize(
    ("count", "numa_nodes", "expected"),
    [
        (8, None, [0, 0, 0, 0, 1, 1, 1, 1]),
        (1, None, [0]),
        (4, 4, [0, 1, 2, 3]),
        (3, 1, [0, 0, 0]),
    ],
)
def test_gpus_are_spread_evenly_over_numa_nodes(
    count: int, numa_nodes: int | None, expected: list[int]
) -> None:
    node = SimulatedNode(Scenario(gpus=[GpuGroup(model="t4", count=count, numa_nodes=numa_nodes)]))

    assert [gpu.identity.numa_node for gpu in node.gpus.values()] == expected


@pytest.mark.parametrize("model", [name for name in model_names() if load_profile(name).mig])
def test_mig_devices_have_memory_and_together_fit_the_gpu(model: str) -> None:
    for mig in load_profile(model).mig:
        group = GpuGroup(model=model, mig=[mig.profile] * mig.instances)
        (gpu,) = SimulatedNode(Scenario(gpus=[group])).gpus.values()
        sizes = [device.memory_bytes for device in gpu.identity.mig_devices]

        assert len(sizes) == mig.instances
        assert 0 < sum(sizes) <= gpu.profile.memory_bytes


@pytest.mark.parametrize(
    ("model", "mig", "eighths"),
    [("b200", "7g.180gb", 8), ("b200", "1g.45gb", 2), ("h200", "3g.71gb", 4)],
)
def test_mig_memory_that_no_source_gives_is_a_share_of_the_gpu(
    model: str, mig: str, eighths: int
) -> None:
    node = SimulatedNode(Scenario(gpus=[GpuGroup(model=model, mig=[mig])]))
    (gpu,) = (one.identity for one in node.gpus.values())
    (device,) = gpu.mig_devices

    assert device.memory_bytes == load_profile(model).memory_bytes * eighths // 8


def test_captured_buses_come_first() -> None:
    captured = load_profile("h100-sxm5-80gb").bus_ids
    groups = [GpuGroup(model="t4"), GpuGroup(model="h100-sxm5-80gb", count=9)]
    node = SimulatedNode(Scenario(gpus=groups))

    _, *buses, last = (gpu.identity.pci_bus_id for gpu in node.gpus.values())
    assert tuple(buses) == captured
    assert last not in captured
