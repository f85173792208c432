"""Recordings: of any backend, as scenarios that a simulated node replays."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import pytest
import yaml

from hal import (
    PCI_3D,
    ComputeProcess,
    EccError,
    Event,
    Gpu,
    GpuAppeared,
    GpuDisappeared,
    GpuState,
    Link,
    LinkKind,
    MigDevice,
    Telemetry,
    ThrottleReason,
    XidError,
)
from hal.nvml.api import Code, EventType, Process, ProcessSample
from hal.nvml.backend import NvmlBackend
from sim.gpu.profiles import load_profile, model_names
from sim.node.node import SimulatedNode
from sim.node.realtime import RealTimeNode, SimBackend
from sim.node.scenario import Scenario, ScenarioError, parse_scenario
from sim.study.observe import Recording, Sample, Summary, nearest_model, observe
from sim.study.recording import as_yaml
from sim.study.usage import Labels
from tests.unit.builders import GIB, a_gpu, a_probe
from tests.unit.hal.fake_nvml import FakeGpu, FakeNvml, event

if TYPE_CHECKING:
    from pathlib import Path

H100 = load_profile("h100-sxm5-80gb")


def an_h100(index: int = 0, **changes: object) -> Gpu:
    gpu = replace(
        a_gpu(index, numa_node=0),
        product=H100.product,
        memory_bytes=H100.memory_bytes,
        mig_capable=True,
        pci_class=PCI_3D,
    )
    return replace(gpu, **changes)  # type: ignore[arg-type] # fields of a Gpu, checked at run time


def a_reading(utilization: float | None = 0.5, used_gib: float = 10.0) -> Telemetry:
    return Telemetry(
        utilization=utilization,
        memory_used_bytes=int(used_gib * GIB) + (H100.memory_reserved_bytes or 0),
        memory_free_bytes=H100.memory_bytes
        - int(used_gib * GIB)
        - (H100.memory_reserved_bytes or 0),
        memory_total_bytes=H100.memory_bytes,
        temperature_c=50.0,
        power_w=300.0,
        power_limit_w=700.0,
        energy_j=1234.5,
        sm_clock_mhz=1980,
        memory_clock_mhz=2619,
        throttle_reasons=ThrottleReason.NONE,
        corrected_ecc=0,
        uncorrectable_ecc=0,
    )


def a_process(
    pid: int, name: str = "train", gib: float | None = 4.0, share: float | None = None
) -> ComputeProcess:
    return ComputeProcess(pid, name, None if gib is None else int(gib * GIB), share)


def a_recording(
    *gpus: Gpu,
    looks: tuple[tuple[ComputeProcess, ...], ...] = ((),),
    reading: Telemetry | None = None,
    events: tuple[tuple[float, Event], ...] = (),
) -> Recording:
    listed = gpus or (an_h100(),)
    first = listed[0].uuid
    summary = Summary()
    for at, processes in enumerate(looks):
        summary.add(Sample(float(at), {first: reading or a_reading()}, {first: processes}))
    probes = {gpu.uuid: a_probe() for gpu in listed}
    return Recording("580.1", 10.0, listed, probes, {}, summary, events, ())


def replayed(recording: Recording, *, scrub: bool = False) -> Scenario:
    return parse_scenario(as_yaml(recording, "test", Labels(scrub=scrub)), "test")


def node_of(recording: Recording, *, scrub: bool = False) -> SimulatedNode:
    node = SimulatedNode(replayed(recording, scrub=scrub))
    node.advance(0.5)
    return node


def test_a_replayed_gpu_is_the_recorded_one() -> None:
    mig = MigDevice("MIG-a", 0, 9, 0, "1g.10gb", 9 * GIB)
    other = replace(mig, uuid="MIG-b", index=1, gpu_instance=3, profile="2g.20gb")
    gpus = (
        an_h100(0, minor=5, numa_node=None, pci_bus_id="00000000:F1:00.0"),
        an_h100(1, mig_enabled=True, mig_devices=(mig, other), memory_bytes=79 * GIB),
    )
    first, second = node_of(a_recording(*gpus)).listed()
    assert replace(first, compute_mode=None) == gpus[0]
    same = replace(second, compute_mode=None, mig_devices=())
    assert same == replace(gpus[1], mig_devices=())
    assert [replace(one, device_nodes=(), attributes=None) for one in second.mig_devices] == [
        mig,
        other,
    ]


def test_links_are_replayed() -> None:
    one, other = an_h100(0), an_h100(1)
    link = Link(LinkKind.SINGLE_SWITCH, 12)
    pair = {(one.uuid, other.uuid): link, (other.uuid, one.uuid): link}
    assert node_of(replace(a_recording(one, other), links=pair)).links() == pair


def test_processes_become_tenants_with_their_load_and_memory() -> None:
    looks = ((a_process(1, share=0.2), a_process(2, "serve", 2.0, 0.4)),) * 3
    node = node_of(a_recording(looks=looks, reading=a_reading(0.6, 6.0)))
    (gpu,) = node.present
    assert [(p.name, p.memory_bytes, p.sm_share) for p in gpu.processes()] == [
        ("train", 4 * GIB, 0.2),
        ("serve", 2 * GIB, 0.4),
    ]
    reading = gpu.telemetry(node.now_s)
    assert reading.utilization == pytest.approx(0.6)
    assert reading.memory_used_bytes == a_reading(0.6, 6.0).memory_used_bytes


def test_load_that_is_not_sampled_is_divided_among_the_processes() -> None:
    looks = ((a_process(1), a_process(2)),)
    (gpu,) = node_of(a_recording(looks=looks, reading=a_reading(0.6, 8.0))).present
    assert [process.sm_share for process in gpu.processes()] == [0.3, 0.3]


def test_load_and_memory_without_a_process_are_not_lost() -> None:
    (tenant,) = replayed(a_recording(reading=a_reading(0.7, 30.0))).tenants
    assert (tenant.name, tenant.utilization, tenant.memory_gib) == ("unattributed", 0.7, 30.0)


def test_a_process_that_comes_later_comes_later() -> None:
    scenario = replayed(a_recording(looks=((), (a_process(1, share=0.5),)), reading=a_reading()))
    tenant = next(one for one in scenario.tenants if one.name == "train")
    assert tenant.start_s == 1.0
    assert tenant.workload is not None


def test_processes_on_mig_devices_stay_there() -> None:
    devices = tuple(
        MigDevice(f"MIG-{index}", index, index + 1, 0, "1g.10gb", 9 * GIB) for index in range(2)
    )
    gpu = an_h100(0, mig_enabled=True, mig_devices=devices)
    process = replace(a_process(1), mig_uuid="MIG-1")
    node = node_of(a_recording(gpu, looks=((process,),), reading=a_reading(None, 4.0)))
    (found,) = node.present[0].processes()
    assert (found.name, found.mig_uuid, found.memory_bytes) == ("train", "MIG-1", 4 * GIB)


def test_mig_devices_that_no_model_has_are_left_out_with_their_processes() -> None:
    device = MigDevice("MIG-0", 0, 1, 0, "1c.9g.99gb", GIB)
    gpu = an_h100(0, mig_enabled=True, mig_devices=(device,))
    recording = a_recording(gpu, looks=((replace(a_process(1), mig_uuid="MIG-0"),),))
    text = as_yaml(recording, "test", Labels(scrub=False))
    assert "# Not as it was: MIG devices of GPU 0 left out" in text
    assert "# Not as it was: train left out: its MIG device is not known" in text
    assert parse_scenario(text, "test").tenants == []


def test_events_become_faults() -> None:
    mig = MigDevice("MIG-0", 0, 4, 0, "1g.10gb", GIB)
    gpu = an_h100(0, mig_enabled=True, mig_devices=(mig,))
    events: tuple[tuple[float, Event], ...] = (
        (1.25, XidError(gpu.uuid, 43, 4, 0)),
        (2.0, EccError(gpu.uuid, uncorrectable=True)),
        (3.0, XidError(gpu.uuid, 79)),
        (3.0, GpuDisappeared(gpu.uuid)),
        (9.0, GpuAppeared(gpu.uuid)),
        (9.5, XidError(None, 13)),
    )
    recording = a_recording(gpu, events=events)
    faults = replayed(recording).faults
    assert [(one.at_s, one.what.kind) for one in faults] == [
        (1.25, "xid"),
        (2.0, "ecc"),
        (3.0, "xid"),
        (3.0, "lost"),
        (9.0, "recover"),
    ]
    assert "XidError after 9.5 s left out" in as_yaml(recording, "test", Labels(scrub=False))

    node = SimulatedNode(replayed(recording))
    node.advance(5.0)
    assert node.take_events()[:2] == (events[0][1], events[1][1])
    assert node.listed()[0].state is GpuState.LOST
    node.advance(9.0)
    assert node.listed()[0].state is GpuState.OK


def test_a_gpu_that_was_lost_from_the_start_is_lost() -> None:
    recording = a_recording(an_h100(0), an_h100(1, state=GpuState.LOST))
    assert [gpu.state for gpu in node_of(recording).listed()] == [GpuState.OK, GpuState.LOST]


def test_memory_errors_from_before_are_there() -> None:
    gpu = an_h100()
    probe = replace(a_probe(), uncorrectable_ecc=3, row_remap_pending=True)
    (found,) = node_of(replace(a_recording(gpu), probes={gpu.uuid: probe})).present
    assert (found.probe().uncorrectable_ecc, found.probe().row_remap_pending) == (3, True)


def test_a_scrubbed_recording_identifies_nothing() -> None:
    gpu = an_h100(0, pci_bus_id="00000000:F1:00.0")
    looks = ((a_process(4711, "/home/ann/secret", share=0.1),),) * 2
    recording = replace(a_recording(gpu, looks=looks), notes=(f"GPU {gpu.uuid} told nothing",))
    text = as_yaml(recording, "test", Labels(scrub=True))
    for secret in (gpu.uuid, "F1:00", "secret", "ann", "4711"):
        assert secret not in text
    assert "process-1" in text
    assert "Scrubbed" in text
    (listed,) = node_of(recording, scrub=True).listed()
    assert listed.product == gpu.product
    assert listed.uuid != gpu.uuid
    plain = as_yaml(recording, "test", Labels(scrub=False))
    assert "It identifies hardware" in plain
    assert gpu.uuid in plain


def test_the_same_program_has_the_same_name_when_scrubbed() -> None:
    looks = ((a_process(1, "a"), a_process(2, "b"), a_process(3, "a")),)
    names = [one.name for one in replayed(a_recording(looks=looks), scrub=True).tenants]
    assert names[:3] == ["process-1", "process-2", "process-1"]


@pytest.mark.parametrize("model", model_names())
def test_every_model_is_nearest_to_itself(model: str) -> None:
    profile = load_profile(model)
    gpu = replace(
        an_h100(),
        product=profile.product,
        memory_bytes=profile.memory_bytes,
        compute_capability=profile.compute_capability,
    )
    assert load_profile(nearest_model(gpu)).product == profile.product


@pytest.mark.parametrize(
    ("product", "gib", "capability", "model"),
    [
        ("NVIDIA H100 NVL", 94, (9, 0), "h100-"),
        ("NVIDIA A100-PCIE-40GB", 40, (8, 0), "a100-sxm4-40gb"),
        ("NVIDIA GeForce RTX 4090 D", 24, (8, 9), "rtx4090"),
        ("Something New", 16, (7, 5), "t4"),
    ],
)
def test_an_unknown_product_gets_the_nearest_model(
    product: str, gib: int, capability: tuple[int, int], model: str
) -> None:
    gpu = replace(an_h100(), product=product, memory_bytes=gib * GIB, compute_capability=capability)
    assert nearest_model(gpu).startswith(model)
    (listed,) = node_of(a_recording(gpu)).listed()
    assert (listed.product, listed.memory_bytes) == (product, gib * GIB)


def test_an_nvml_backend_can_be_recorded(tmp_path: Path) -> None:
    gpu = FakeGpu("GPU-a", utilization=80, power_limit_mw=650_000)
    gpu.processes = [Process(7, 3 * GIB, 0xFFFFFFFF, 0xFFFFFFFF)]
    gpu.samples = [ProcessSample(7, 1, 75)]
    nvml = FakeNvml(gpu)
    nvml.names[7] = "/usr/bin/train"
    nvml.push(event(gpu, EventType.XID, 13))
    backend = NvmlBackend(tmp_path, nvml, sysfs_root=tmp_path, procfs_root=tmp_path)
    backend.open()
    ticks = count()
    recording = observe(backend, 0.2, 0.05, clock=lambda: next(ticks) / 100)
    backend.close()
    assert recording.summary.looks > 1
    scenario = replayed(recording)
    (group,) = scenario.gpus
    assert group.recorded is not None
    assert (group.recorded.uuid, group.recorded.power_limit_w) == ("GPU-a", 650.0)
    assert scenario.tenants[0].name == "/usr/bin/train"
    assert scenario.tenants[0].utilization == 0.75
    assert [one.what.kind for one in scenario.faults] == ["xid"]


def test_what_one_gpu_cannot_tell_is_a_note_and_hides_no_other(tmp_path: Path) -> None:
    nvml = FakeNvml(
        FakeGpu("GPU-b", bus_id="0:1:0.0"),
        FakeGpu("GPU-a", failing={"processes": Code.NOT_SUPPORTED}),
    )
    backend = NvmlBackend(tmp_path, nvml, sysfs_root=tmp_path, procfs_root=tmp_path)
    backend.open()
    recording = observe(backend, 0.02, 0.01)
    backend.close()
    assert {uuid for uuid, _ in recording.summary.readings} == {"GPU-a", "GPU-b"}
    text = as_yaml(recording, "test", Labels(scrub=False))
    assert "# Not as it was: The processes on GPU GPU-a are unknown" in text


def test_a_simulated_node_in_real_time_is_recorded_with_a_gpu_that_is_lost() -> None:
    scenario = parse_scenario(
        "gpus: [{model: t4, count: 2}]\nfaults: [{at_s: 0, gpu: 0, what: {kind: lost}}]",
        "two",
    )
    node = RealTimeNode(SimulatedNode(scenario))
    backend = SimBackend(node)
    backend.open()
    recording = observe(backend, 0.02, 0.01)
    backend.close()
    node.stop()
    assert [gpu.state for gpu in node_of(recording).listed()] == [GpuState.LOST, GpuState.OK]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("gpus: [{model: t4, count: 2, recorded: {}}]", "count 1"),
        (
            "gpus: [{model: t4, recorded: {mig: [{gpu_instance: 1}]}}]",
            "recorded.mig has more devices",
        ),
        (
            "gpus: [{model: t4, recorded: {uuid: a}}, {model: t4, recorded: {uuid: a}}]",
            "recorded.uuid a is there twice",
        ),
        ("gpus: [{model: t4}]\nlinks: [{gpus: [0, 1], path: same-cpu}]", "links"),
    ],
)
def test_recorded_facts_that_cannot_be(text: str, wrong: str) -> None:
    with pytest.raises(ScenarioError, match=wrong):
        parse_scenario(text, "wrong")


def test_the_text_is_plain_yaml_of_a_scenario() -> None:
    text = as_yaml(a_recording(), "mine", Labels(scrub=False))
    assert yaml.safe_load(text)["name"] == "mine"
