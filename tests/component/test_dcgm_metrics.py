"""What GPUs and pods use under the names of dcgm-exporter, as Prometheus gets it over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from hal import GIB
from sim.gpu.faults import XidFault
from sim.gpu.tenancy import TenantSpec
from sim.gpu.workloads import ClosedLoop, MemoryUse
from sim.kubelet import simple_pod
from sim.node.podwork import PodWork
from tests.component.running import RESOURCE
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prometheus_client.samples import Sample

    from sim.kubelet import Kubelet, Pod
    from tests.component.conftest import MakeHardware, StartPlugin
    from tests.component.running import Hardware, PluginProcess

UTIL, USED, FREE = "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE"
POWER, XID = "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_XID_ERRORS"
OF_DASHBOARDS = {
    *(UTIL, USED, FREE, POWER, XID),
    *("DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_SM_CLOCK", "DCGM_FI_DEV_MEM_CLOCK"),
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
}
"""What published dashboards ask for, Grafana's 12239 among them, and NVML can tell."""
MIB = 1024**2
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


def work_of(pod: Pod) -> TenantSpec | None:
    if pod.name.startswith("idle"):
        return None
    return TenantSpec(pod.name, ClosedLoop(busy_ms=20), MemoryUse(start_gib=4), 0.5)


@pytest.fixture
def work(kubelet: Kubelet, hardware: Hardware, tmp_path: Path) -> Iterator[PodWork]:
    work = PodWork(kubelet, hardware.node, tmp_path, work_of)
    work.start()
    yield work
    work.stop()


def flags(work: PodWork) -> dict[str, str]:
    return {
        "--metrics-interval": "100ms",
        "--host-proc": str(work.proc),
        "--pod-logs": str(work.pod_logs),
        "--dcgm-metrics": "true",
        "--node-name": "worker-7",
        "--include-gpus": "0,1",
    }


def pods_of(samples: list[Sample]) -> set[str]:
    return {one.labels.get("pod", "") for one in samples}


def of_gpu(plugin: PluginProcess, name: str, uuid: str) -> list[Sample]:
    return [one for one in plugin.samples(name) if one.labels["UUID"] == uuid]


def by_pod(scrape: str, name: str, uuid: str) -> dict[str, float]:
    """Values of one scrape, "" for a sample without a pod."""
    return {
        one.labels.get("pod", ""): one.value
        for family in text_families(scrape)
        for one in family.samples
        if one.name == name and uuid in (one.labels.get("UUID"), one.labels.get("uuid"))
    }


def test_each_pod_has_its_part_and_the_parts_are_the_gpus(
    kubelet: Kubelet, start_plugin: StartPlugin, hardware: Hardware, work: PodWork
) -> None:
    plugin = start_plugin(hardware.backend, flags=flags(work))
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 20, 20)
    for name in ("busy-0", "busy-1", "busy-2", "idle-0"):
        kubelet.run_pod(simple_pod(name, {RESOURCE: 1}))
    held = {
        one.labels["pod"]: one.labels["uuid"] for one in plugin.samples("gpuplugin_replica_info")
    }
    shared = max(held.values(), key=[*held.values()].count)
    mates = {name for name, uuid in held.items() if uuid == shared and name.startswith("busy")}
    assert len(mates) > 1

    def in_turns() -> str:
        """A scrape after a sample period in which they all had work."""
        scrape = plugin.get("/metrics").body
        busy = by_pod(scrape, UTIL, shared)
        return scrape if all(0 < busy.get(name, 0) < 90 for name in mates) else ""

    scrape = eventually(in_turns)
    assert scrape.count("# TYPE DCGM_FI_DEV_POWER_USAGE untyped") == 1
    used, busy = by_pod(scrape, USED, shared), by_pod(scrape, UTIL, shared)
    assert all(used[name] == pytest.approx(4 * 1024 + 300, rel=0.01) for name in mates)
    assert sum(used.values()) == pytest.approx(
        sum(by_pod(scrape, "gpuplugin_gpu_memory_used_bytes", shared).values()) / MIB
    )
    assert mates < busy.keys()
    assert sum(busy.values()) == pytest.approx(
        sum(by_pod(scrape, "gpuplugin_gpu_utilization_ratio", shared).values()) * 100, abs=0.01
    )


def test_what_is_the_boards_is_there_once_with_dcgms_labels(
    kubelet: Kubelet, start_plugin: StartPlugin, hardware: Hardware, work: PodWork
) -> None:
    plugin = start_plugin(hardware.backend, flags=flags(work))
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 20, 20)
    for number in range(4):
        kubelet.run_pod(simple_pod(f"busy-{number}", {RESOURCE: 1}))
    eventually(lambda: pods_of(plugin.samples(USED)) > {""})
    text = plugin.get("/metrics", OPENMETRICS).body
    found = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    names = {family.name for family in found}
    assert names >= OF_DASHBOARDS
    for name in OF_DASHBOARDS - {UTIL, USED}:
        assert len(plugin.samples(name)) == len(hardware.uuids), name
    (first,) = of_gpu(plugin, POWER, hardware.uuids[0])
    labels = dict(first.labels)
    assert labels.pop("DCGM_FI_DRIVER_VERSION") == hardware.backend.driver_version
    assert {key: labels[key] for key in ("gpu", "device", "Hostname", "modelName")} == {
        "gpu": "0",
        "device": "nvidia0",
        "Hostname": "worker-7",
        "modelName": "NVIDIA H100 80GB HBM3",
    }
    assert labels["pci_bus_id"].startswith("00000000:")
    assert "pod" not in labels, "two pods share it"


def test_a_pod_that_is_alone_has_all_of_the_gpu(
    kubelet: Kubelet, start_plugin: StartPlugin, hardware: Hardware, work: PodWork
) -> None:
    plugin = start_plugin(hardware.backend, flags={**flags(work), "--include-gpus": "0"})
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 10, 20)
    kubelet.run_pod(simple_pod("busy-0", {RESOURCE: 1}))
    uuid = hardware.uuids[0]
    eventually(lambda: pods_of(of_gpu(plugin, USED, uuid)) == {"busy-0"})
    for name in OF_DASHBOARDS:
        (one,) = of_gpu(plugin, name, uuid)
        assert one.labels["pod"] == "busy-0"
        assert one.labels["namespace"] == "default"
        assert one.labels["container"] == "main"
    assert pods_of(of_gpu(plugin, POWER, hardware.uuids[1])) == {""}


def test_the_last_xid_is_shown_and_none_is_0(
    kubelet: Kubelet, start_plugin: StartPlugin, hardware: Hardware, work: PodWork
) -> None:
    plugin = start_plugin(hardware.backend, flags=flags(work))
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 20, 20)
    assert {one.value for one in plugin.samples(XID)} == {0}
    for xid in (31, 13):
        hardware.let(1, XidFault(xid=xid))
    eventually(lambda: of_gpu(plugin, XID, hardware.uuids[1])[0].value == 13)
    assert of_gpu(plugin, XID, hardware.uuids[0])[0].value == 0


def test_a_mig_device_has_its_memory(
    start_plugin: StartPlugin, make_hardware: MakeHardware
) -> None:
    hardware = make_hardware(1)
    hardware.repartition(0, ["1g.10gb", "2g.20gb"])
    options = {"--mig-strategy": "mixed", "--dcgm-metrics": "true"}
    plugin = start_plugin(hardware.backend, "none", options)
    eventually(lambda: plugin.ready)
    profiles = [one.labels.get("GPU_I_PROFILE") for one in plugin.samples(FREE)]
    assert "1g.10gb" in profiles
    free = [one for one in plugin.samples(FREE) if one.labels.get("GPU_I_PROFILE") == "1g.10gb"]
    assert all(one.value == pytest.approx(GIB * 9.5 / MIB, rel=0.1) for one in free)
    assert {one.labels["GPU_I_ID"] for one in free}


def test_nobody_gets_them_unasked(start_plugin: StartPlugin, hardware: Hardware) -> None:
    plugin = start_plugin(hardware.backend, "none")
    eventually(lambda: plugin.samples("gpuplugin_gpu_power_watts"))
    assert "DCGM" not in plugin.get("/metrics").body
