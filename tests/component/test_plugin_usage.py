"""Who uses the GPUs, as /metrics tells it: pods, their memory and share, and what is not seen."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hal import GIB
from sim.gpu.tenancy import TenantSpec
from sim.gpu.workloads import ClosedLoop, MemoryUse
from sim.kubelet import Phase, simple_pod
from sim.node.podwork import PodWork
from tests.component.running import RESOURCE
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from hal import Telemetry
    from sim.kubelet import Kubelet, Pod
    from tests.component.conftest import StartPlugin
    from tests.component.running import Hardware, PluginProcess

HUNGRY_GIB, MODEST_GIB, CONTEXT_MIB = 40.0, 4.0, 300.0
TOLERANCE = 0.05


def work_of(pod: Pod) -> TenantSpec | None:
    """Hungry pods hold much memory and run twice as long kernels; idle ones do nothing."""
    if pod.name.startswith("idle"):
        return None
    hungry = pod.name.startswith("hungry")
    memory = MemoryUse(start_gib=HUNGRY_GIB if hungry else MODEST_GIB, context_mib=CONTEXT_MIB)
    return TenantSpec(pod.name, ClosedLoop(busy_ms=20), memory, 0.5)


@pytest.fixture
def work(kubelet: Kubelet, hardware: Hardware, tmp_path: Path) -> Iterator[PodWork]:
    work = PodWork(kubelet, hardware.node, tmp_path, work_of)
    work.start()
    yield work
    work.stop()


def flags(work: PodWork, **more: str) -> dict[str, str]:
    return {
        "--metrics-interval": "100ms",
        "--host-proc": str(work.proc),
        "--pod-logs": str(work.pod_logs),
        **{f"--{name.replace('_', '-')}": text for name, text in more.items()},
    }


def value(plugin: PluginProcess, name: str, **labels: str) -> float | None:
    """The one sample of these labels, None if there is none."""
    found = [one for one in plugin.samples(name) if labels.items() <= one.labels.items()]
    assert len(found) <= 1, found
    return found[0].value if found else None


def truth(hardware: Hardware) -> Mapping[str, tuple[int, float]]:
    """Memory and share of each tenant, as the simulated node itself has them."""
    with hardware.node.update() as node:
        return {
            one.name: (one.memory_bytes or 0, one.sm_share or 0.0)
            for gpu in node.present
            for one in gpu.processes()
        }


def test_gpus_are_read_when_somebody_asks_and_not_again_within_the_interval(
    kubelet: Kubelet,
    hardware: Hardware,
    start_plugin: StartPlugin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []
    telemetry = hardware.backend.telemetry

    def counted(uuid: str) -> Telemetry:
        read.append(uuid)
        return telemetry(uuid)

    monkeypatch.setattr(hardware.backend, "telemetry", counted)
    plugin = start_plugin(hardware.backend, flags={"--metrics-interval": "1h"})
    eventually(lambda: plugin.ready)
    assert read == []
    for _ in range(2):  # the first scrape after the start has them
        assert len(plugin.samples("gpuplugin_gpu_temperature_celsius")) == 8
        assert sorted(read) == sorted(hardware.uuids)


def test_a_hungry_pod_is_named_with_its_memory_and_share(
    kubelet: Kubelet,
    start_plugin: StartPlugin,
    hardware: Hardware,
    work: PodWork,
) -> None:
    plugin = start_plugin(hardware.backend, flags=flags(work, include_gpus="0"))
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 10, 20)
    for name in ("hungry-0", "modest-0", "modest-1", "idle-0"):
        assert kubelet.run_pod(simple_pod(name, {RESOURCE: 1})).phase is Phase.RUNNING

    def as_in_truth() -> bool:
        wanted = truth(hardware)
        return len(wanted) == 3 and all(
            _near(value(plugin, "gpuplugin_pod_memory_bytes", pod=name), memory)
            and _near(value(plugin, "gpuplugin_pod_sm_ratio", pod=name), share)
            for name, (memory, share) in wanted.items()
        )

    eventually(as_in_truth)
    assert _near(value(plugin, "gpuplugin_pod_memory_bytes", pod="hungry-0"), 40.3 * GIB)
    over = "gpuplugin_pod_memory_over_fair_share"
    assert value(plugin, over, pod="hungry-0", namespace="default", container="main") == 1
    assert value(plugin, over, pod="modest-0") == 0
    assert value(plugin, over, pod="idle-0") is None
    assert value(plugin, "gpuplugin_pod_replicas", pod="idle-0") == 1
    assert value(plugin, "gpuplugin_gpu_replicas_allocated") == 4
    assert value(plugin, "gpuplugin_gpu_tenants") == 3
    # On a busy machine a sample may find no work: each value is that of a sample of its own.
    eventually(lambda: value(plugin, "gpuplugin_gpu_contending_tenants") == 3)
    eventually(lambda: (value(plugin, "gpuplugin_gpu_fairness_ratio") or 0) > 0.9)
    assert {one.labels["pod"] for one in plugin.samples("gpuplugin_replica_info")} == {
        "hungry-0", "modest-0", "modest-1", "idle-0",
    }  # fmt: skip
    assert {one.labels["what"]: one.value for one in plugin.samples("gpuplugin_visible")} == {
        "pod-resources": 1, "processes": 1, "pods": 1,
    }  # fmt: skip


def test_series_of_a_deleted_pod_go_away(
    kubelet: Kubelet, start_plugin: StartPlugin, hardware: Hardware, work: PodWork
) -> None:
    plugin = start_plugin(hardware.backend, flags=flags(work))
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 80, 20)
    kubelet.run_pod(simple_pod("hungry-0", {RESOURCE: 1}))
    eventually(lambda: value(plugin, "gpuplugin_pod_memory_bytes", pod="hungry-0"))
    kubelet.delete_pod("hungry-0")
    eventually(lambda: "hungry-0" not in plugin.get("/metrics").body)


def test_without_the_hosts_processes_that_is_said_once(
    kubelet: Kubelet,
    start_plugin: StartPlugin,
    hardware: Hardware,
    work: PodWork,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "gpuplugin.daemon.hardware.sampler")
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    plugin = start_plugin(hardware.backend, flags=flags(work, host_proc=str(nothing)))
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 80, 20)
    kubelet.run_pod(simple_pod("hungry-0", {RESOURCE: 1}))
    eventually(lambda: value(plugin, "gpuplugin_visible", what="pods") == 0)
    eventually(lambda: value(plugin, "gpuplugin_pod_memory_bytes", pod=""))
    assert value(plugin, "gpuplugin_pod_replicas", pod="hungry-0") == 1
    before = plugin.metric("gpuplugin_reading_age_seconds")
    eventually(lambda: plugin.metric("gpuplugin_reading_age_seconds") != before)
    told = [record.message for record in caplog.records if "hostPID" in record.message]
    assert len(told) == 1, told


def test_without_processes_nothing_says_that_their_pods_are_known_again(
    kubelet: Kubelet,
    start_plugin: StartPlugin,
    hardware: Hardware,
    work: PodWork,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "gpuplugin.daemon.hardware.sampler")
    plugin = start_plugin(hardware.backend, flags=flags(work, host_proc=str(tmp_path)))
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 80, 20)
    kubelet.run_pod(simple_pod("hungry-0", {RESOURCE: 1}))
    # Before the first reading nothing is visible: the process must have been seen.
    eventually(lambda: value(plugin, "gpuplugin_pod_memory_bytes", pod=""))
    eventually(lambda: value(plugin, "gpuplugin_visible", what="pods") == 0)
    hardware.driver_down()
    eventually(lambda: value(plugin, "gpuplugin_visible", what="processes") == 0)
    assert value(plugin, "gpuplugin_visible", what="pods") == 0
    told = [one.message for one in caplog.records if one.name.endswith(".sampler")]
    assert [message for message in told if "again" in message] == []


def test_without_the_kubelets_answer_hardware_is_still_told(
    kubelet_dir: Path, start_plugin: StartPlugin, hardware: Hardware
) -> None:
    plugin = start_plugin(hardware.backend, "none", {"--metrics-interval": "100ms"})
    eventually(lambda: len(plugin.samples("gpuplugin_gpu_temperature_celsius")) == 8)
    assert value(plugin, "gpuplugin_visible", what="pod-resources") == 0
    assert plugin.samples("gpuplugin_gpu_replicas_allocated") == []
    assert len(plugin.samples("gpuplugin_gpu_replicas")) == 8


def test_a_gpu_that_does_not_answer_has_no_readings(
    start_plugin: StartPlugin, hardware: Hardware
) -> None:
    """Neither the last ones nor zeros; and the others have theirs."""
    plugin = start_plugin(hardware.backend, "none", {"--metrics-interval": "100ms"})
    eventually(lambda: len(plugin.samples("gpuplugin_gpu_temperature_celsius")) == 8)
    hardware.lose(2)
    eventually(lambda: len(plugin.samples("gpuplugin_gpu_temperature_celsius")) == 7)
    assert len(plugin.samples("gpuplugin_gpu_info")) == 8
    eventually(lambda: (value(plugin, "gpuplugin_gpu_unhealthy_seconds_total", gpu="2") or 0) > 0)
    hardware.recover(2)
    eventually(lambda: len(plugin.samples("gpuplugin_gpu_temperature_celsius")) == 8)


def test_readings_that_grew_old_are_dropped(start_plugin: StartPlugin, hardware: Hardware) -> None:
    plugin = start_plugin(hardware.backend, "none", {"--metrics-interval": "100ms"})
    eventually(lambda: len(plugin.samples("gpuplugin_gpu_temperature_celsius")) == 8)
    hardware.driver_down()
    eventually(lambda: plugin.samples("gpuplugin_gpu_temperature_celsius") == [])
    eventually(lambda: value(plugin, "gpuplugin_visible", what="processes") == 0)
    hardware.driver_up()
    eventually(lambda: len(plugin.samples("gpuplugin_gpu_temperature_celsius")) == 8)


def _near(found: float | None, wanted: float) -> bool:
    return found is not None and abs(found - wanted) <= TOLERANCE * wanted


def units_with(plugin: PluginProcess, prefix: str) -> set[str]:
    """The UUIDs in all series whose name begins so."""
    return {
        sample.labels["uuid"]
        for family in text_string_to_metric_families(plugin.get("/metrics").body)
        for sample in family.samples
        if sample.name.startswith(prefix) and sample.labels.get("uuid")
    }


def test_mig_devices_that_are_gone_leave_no_series(
    start_plugin: StartPlugin, hardware: Hardware
) -> None:
    """A node that is partitioned again and again does not grow."""
    plugin = start_plugin(hardware.backend, "none", {"--metrics-interval": "100ms"})
    eventually(lambda: len(plugin.samples("gpuplugin_gpu_temperature_celsius")) == 8)
    ever: set[str] = set()
    for mig in (["1g.10gb"] * 7, ["3g.40gb"] * 2, ["2g.20gb"] * 3, None):
        hardware.repartition(0, mig)
        count = 8 + len(mig or ())
        eventually(partial(_counts, plugin, count))
        hardware.xid(0, 48)
        eventually(lambda: "gpuplugin_gpu_health_transitions_total" in plugin.get("/metrics").body)
        ever |= units_with(plugin, "gpuplugin_gpu_health")
    assert len(ever) > 18
    eventually(lambda: units_with(plugin, "gpuplugin_") == set(hardware.uuids))


def _counts(plugin: PluginProcess, units: int) -> bool:
    return len(units_with(plugin, "gpuplugin_gpu_health")) == units
