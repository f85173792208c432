"""What users of NVIDIA's device plugin ask for or complain of, each shown to be gone.

Numbers are those of issues and pull requests at NVIDIA/k8s-device-plugin, unless a repository is
named. The tests are in the order of how often and how hard the complaint comes.
"""

from __future__ import annotations

import ctypes
import re
from functools import partial
from typing import TYPE_CHECKING

import pytest

from gpuplugin.kubelet.proto import deviceplugin_pb2 as dp
from hal import DriverNotFound
from hal.nvml import NvmlBackend
from hal.nvml.library import LIBRARY, LIBRARY_DIRS, load_library
from sim.kubelet import Amount, Kubelet, Phase, simple_pod
from tests.component.fakedriver import FakeDriver, made_up_gpu, with_mig
from tests.component.running import RESOURCE, allocate_request
from tests.component.waiting import DEADLINE_S, eventually
from tests.unit.deploy.manifests import can_be_scheduled, plugin_container, pod_spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sim.kubelet import KubeletEvent
    from tests.component.conftest import MakeHardware, StartPlugin
    from tests.component.running import Hardware

UNSHARED = "version: v1\nflags: {migStrategy: mixed}\n"
SMALL, LARGE = "nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb"


def wait_for(kubelet: Kubelet, resource: str, capacity: int, allocatable: int) -> None:
    amount = Amount(capacity, allocatable)
    kubelet.wait_until(lambda node: node.amounts.get(resource) == amount, DEADLINE_S)


@pytest.fixture
def unshared(kubelet_dir: Path) -> Path:
    """A configuration with a resource per MIG profile, and nothing shared."""
    config = kubelet_dir / "config.yaml"
    config.write_text(UNSHARED)
    return config


@pytest.mark.parametrize(
    ("fault", "ends_by_itself"),
    [("application", True), ("other", True), ("reset", False), ("lost", False), ("hot", False)],
)
def test_ask_01_an_unhealthy_gpu_comes_back_and_not_too_soon(
    kubelet: Kubelet,
    hardware: Hardware,
    start_plugin: StartPlugin,
    fault: str,
    ends_by_itself: bool,
) -> None:
    """#189, #234, #415, #111, #1014, #426, PR #1211; HAMi #2200 (a probe alone is too soon)."""
    plugin = start_plugin(hardware.backend)
    wait_for(kubelet, RESOURCE, 80, 80)
    (socket,) = plugin.sockets()
    lists = kubelet.view().list_updates[RESOURCE]
    inject = {
        "application": lambda: hardware.xid(2, 31),
        "other": lambda: hardware.xid(2, 74),
        "reset": lambda: hardware.xid(2, 95),
        "lost": lambda: hardware.lose(2),
        "hot": lambda: hardware.thermal_shutdown(2),
    }
    inject[fault]()
    if fault == "application":
        eventually(lambda: plugin.metric("gpuplugin_xid_events_total", gpu="2", xid="31") == 1)
        assert kubelet.view().amounts[RESOURCE] == Amount(80, 80), "the GPU was never in doubt"
        return
    if ends_by_itself:  # perhaps before anybody looks
        eventually(lambda: kubelet.view().list_updates[RESOURCE] == lists + 2)
    else:
        wait_for(kubelet, RESOURCE, 80, 70)
        hardware.wait_for_probes(2, 8)  # more than twice the quiet period
        assert kubelet.view().amounts[RESOURCE] == Amount(80, 70), "its cause is still there"
        hardware.recover(2)
    wait_for(kubelet, RESOURCE, 80, 80)
    assert plugin.sockets() == (socket,), "nothing was restarted"
    for state in ("Unhealthy", "Recovering", "Healthy"):
        seen = {"uuid": hardware.uuids[2], "state": state}
        assert plugin.metric("gpuplugin_gpu_health_transitions_total", **seen) == 1


def test_ask_02_an_xid_marks_all_replicas_of_its_gpu(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin
) -> None:
    """#1929, PR #1930, PR #1992; HAMi #3025."""
    start_plugin(hardware.backend, flags={"--health-quiet-period": "10m"})
    wait_for(kubelet, RESOURCE, 80, 80)
    hardware.xid(5, 79)
    wait_for(kubelet, RESOURCE, 80, 70)
    assert set(kubelet.view().unhealthy(RESOURCE)) == set(hardware.replicas(5))


def test_ask_02_an_xid_of_a_mig_device_marks_that_one_and_one_of_the_gpu_marks_all(
    kubelet: Kubelet, make_hardware: MakeHardware, start_plugin: StartPlugin, unshared: Path
) -> None:
    """#1929, PR #1930: by GPU instance and compute instance."""
    mig = ["1g.10gb", "1g.10gb", "3g.40gb"]
    hardware = make_hardware(
        gpus=[{"model": "h100-sxm5-80gb", "count": 2, "mig": mig}],
    )
    plugin = start_plugin(
        hardware.backend, flags={"--health-quiet-period": "10m"}, config_file=unshared
    )
    wait_for(kubelet, SMALL, 4, 4)
    wait_for(kubelet, LARGE, 2, 2)
    hardware.xid(0, 95, mig=1)
    wait_for(kubelet, SMALL, 4, 3)
    with hardware.node.update() as model:
        devices = model.present[0].identity.mig_devices
    assert kubelet.view().unhealthy(SMALL) == (devices[1].uuid,)
    assert kubelet.view().amounts[LARGE] == Amount(2, 2)
    hardware.xid(0, 95)
    wait_for(kubelet, SMALL, 4, 2)
    wait_for(kubelet, LARGE, 2, 1)
    assert plugin.metric("gpuplugin_gpu_health", gpu="0:1", state="Unhealthy") == 1


def test_ask_03_a_gpu_off_the_bus_fails_no_pod_of_the_others(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin
) -> None:
    """#231 (12,000 failed pods), #2038, PR #2039, #1223 (5000 pods); kubernetes #97131."""
    plugin = start_plugin(hardware.backend)
    wait_for(kubelet, RESOURCE, 80, 80)
    hardware.xid(3, 79)
    wait_for(kubelet, RESOURCE, 80, 70)
    for number in range(70):
        status = kubelet.run_pod(simple_pod(f"pod-{number}", {RESOURCE: 1}))
        assert status.phase is Phase.RUNNING, status
        assert status.grants[0].envs["NVIDIA_VISIBLE_DEVICES"] != hardware.uuids[3]
    # Asked for the lost GPU's devices all the same, the plugin has an answer, too.
    wanted = dp.PreferredAllocationRequest(
        container_requests=[
            dp.ContainerPreferredAllocationRequest(
                available_deviceIDs=[*hardware.replicas(3), *hardware.replicas(4)],
                must_include_deviceIDs=hardware.replicas(3)[:1],
                allocation_size=2,
            )
        ]
    )
    answer = plugin.call("GetPreferredAllocation", wanted.SerializeToString())
    (chosen,) = dp.PreferredAllocationResponse.FromString(answer).container_responses
    assert len(chosen.deviceIDs) == 2
    assert plugin.call("Allocate", allocate_request(hardware.replicas(3)[:1]))


@pytest.mark.parametrize("what", ["events", "driver", "hang"])
def test_ask_04_a_plugin_that_cannot_watch_never_says_healthy(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin, what: str
) -> None:
    """#1640 "Zombie Node", PR #1641, PR #2037, PR #1553; HAMi PR #2322 (busy loop)."""
    plugin = start_plugin(hardware.backend)
    wait_for(kubelet, RESOURCE, 80, 80)
    eventually(lambda: plugin.ready)
    fail, mend = {
        "events": (hardware.break_watching, hardware.mend_watching),
        "driver": (hardware.driver_down, hardware.driver_up),
        "hang": (hardware.driver_hang, hardware.driver_up),
    }[what]
    fail()
    wait_for(kubelet, RESOURCE, 80, 0)
    eventually(lambda: plugin.get("/ready").status == 503)
    assert plugin.get("/health").status == 200, "a restart would not help"
    assert plugin.metric("gpuplugin_monitor_blind") == 1
    failures = plugin.metric("gpuplugin_monitor_failures_total")
    assert failures < 50, "it does not turn in circles"
    mend()
    wait_for(kubelet, RESOURCE, 80, 80)
    eventually(lambda: plugin.ready)


def test_ask_12_metrics_tell_allocations_health_and_latency(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin
) -> None:
    """#900 "Lack of Metrics for SLO Onboarding", #519; dcgm-exporter #151, #307 (form of ids)."""
    plugin = start_plugin(hardware.backend)
    wait_for(kubelet, RESOURCE, 80, 80)
    ids = [
        kubelet.run_pod(simple_pod(f"pod-{number}", {RESOURCE: 1})).grants[0].device_ids[0]
        for number in range(3)
    ]
    greedy = kubelet.run_pod(simple_pod("greedy", {RESOURCE: 2}))
    assert greedy.phase is Phase.FAILED
    assert all(re.fullmatch(r"GPU-[0-9a-f-]{36}::[0-9]", one) for one in ids)

    latency = "gpuplugin_rpc_duration_seconds"
    allocate = {"resource": RESOURCE, "method": "Allocate"}
    assert plugin.metric(f"{latency}_count", **allocate, code="OK") == 3
    assert plugin.metric(f"{latency}_count", **allocate, code="INVALID_ARGUMENT") == 1
    assert 0 < plugin.metric(f"{latency}_sum", **allocate, code="OK") < 1
    assert plugin.metric(f"{latency}_bucket", **allocate, code="OK", le="+Inf") == 3

    hardware.xid(3, 79)
    wait_for(kubelet, RESOURCE, 80, 70)
    gpu = {"uuid": hardware.uuids[3], "gpu": "3"}
    eventually(lambda: plugin.metric("gpuplugin_gpu_health", **gpu, state="Unhealthy") == 1)
    assert plugin.metric("gpuplugin_devices", resource=RESOURCE, health="Unhealthy") == 10
    assert plugin.metric("gpuplugin_xid_events_total", **gpu, xid="79") == 1


def test_ask_13_liveness_and_readiness_are_told_apart(
    kubelet: Kubelet, start_plugin: StartPlugin
) -> None:
    """#426, #1223 "error calling nvml.Init", PR #403: the shipped probes ask what is answered."""
    container = plugin_container()
    start_up, alive, ready = (
        container[probe]["httpGet"]["path"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    )
    driver = FakeDriver(2)
    driver.on_open = DriverNotFound(LIBRARY, ["/usr/lib64"], "Install the NVIDIA driver")
    plugin = start_plugin(driver)
    eventually(lambda: driver.opens >= 2)
    # Without a driver: nothing that a restart would cure.
    assert [plugin.get(path).status for path in (start_up, alive, ready)] == [200, 200, 503]
    driver.on_open = None
    wait_for(kubelet, RESOURCE, 20, 20)
    eventually(lambda: plugin.get(ready).status == 200)
    # Without a kubelet: the same.
    kubelet.stop()
    eventually(lambda: plugin.get(ready).status == 503)
    assert plugin.get(alive).status == 200
    kubelet.start()
    eventually(lambda: plugin.get(ready).status == 200)


def test_ask_14_a_missing_library_names_the_paths_and_the_remedy(
    tmp_path: Path, start_plugin: StartPlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """#23, #47, #60, #444, #478, #826, #1371 (/opt/nvidia/lib64), #406; siderolabs/talos #8713."""

    def files_only(name: str) -> None:
        """The loader, on a machine that has no driver elsewhere."""
        if not name.startswith("/"):
            raise OSError(f"{name}: cannot open shared object file")
        ctypes.CDLL(name)

    loader: Callable[..., Path | None] = partial(load_library, dlopen=files_only)
    monkeypatch.setattr("hal.nvml.backend.load_library", loader)
    plugin = start_plugin(NvmlBackend(tmp_path), flags={"--backend": "nvml"})
    text = str(eventually(lambda: plugin.get("/ready").parts.get("monitor", {}).get("text")))
    assert f"{LIBRARY} was not found" in text
    for folder in LIBRARY_DIRS:
        assert str(tmp_path / folder / LIBRARY) in text
    for remedy in ("runtimeClassName", "RuntimeClass 'nvidia'", "--driver-root", "DRIVER_ROOT"):
        assert remedy in text
    assert plugin.get("/health").status == 200
    assert pod_spec()["runtimeClassName"] == "nvidia", "the remedy is in the shipped manifest"


@pytest.mark.parametrize(
    "label",
    [
        "feature.node.kubernetes.io/pci-10de.present=true",
        "feature.node.kubernetes.io/pci-0300_10de.present=true",
        "feature.node.kubernetes.io/pci-0302_10de.present=true",
        "nvidia.com/gpu.present=true",
        "node-type=gpu",
    ],
)
def test_ask_15_no_single_label_decides_whether_there_are_pods(label: str) -> None:
    """#708, #607, #1213 "Different PCI label from node feature discovery", #315, #45."""
    key, _, value = label.partition("=")
    assert can_be_scheduled({key: value})
    assert not can_be_scheduled({})


def test_ask_16_a_driver_that_comes_late_is_waited_for(
    kubelet: Kubelet, start_plugin: StartPlugin
) -> None:
    """#170, #221, #1080 "No devices found. Waiting indefinitely"; bottlerocket #4250."""
    driver = FakeDriver(0)
    driver.on_open = DriverNotFound(LIBRARY, ["/usr/lib64"], "Install the NVIDIA driver")
    plugin = start_plugin(driver)
    eventually(lambda: plugin.metric("gpuplugin_monitor_failures_total", stage="open") >= 3)
    ready = plugin.get("/ready")
    assert ready.status == 503
    assert "Install the NVIDIA driver" in str(ready.parts["monitor"]["text"])
    driver.on_open = None  # the driver is there, its GPUs are not yet
    eventually(lambda: "no GPU" in str(plugin.get("/ready").parts["monitor"]["text"]))
    assert plugin.get("/ready").status == 503
    driver.listed = (made_up_gpu(0), made_up_gpu(1))
    wait_for(kubelet, RESOURCE, 20, 20)
    eventually(lambda: plugin.ready)
    assert plugin.metric("gpuplugin_task_restarts_total") == 0


def test_ask_17_a_mig_change_and_a_hot_plugged_gpu_are_found_without_a_restart(
    kubelet: Kubelet, unshared: Path, start_plugin: StartPlugin
) -> None:
    """#992 "Support automatic discovery of MIG devices", #389, #34, #451; gpu-operator #482."""
    whole, split = made_up_gpu(0), made_up_gpu(1)
    driver = FakeDriver(0)
    driver.listed = (whole, split)
    plugin = start_plugin(driver, config_file=unshared)
    wait_for(kubelet, RESOURCE, 2, 2)
    (untouched,) = plugin.sockets()
    driver.listed = (whole, with_mig(split, *["1g.10gb"] * 7))
    wait_for(kubelet, SMALL, 7, 7)
    wait_for(kubelet, RESOURCE, 1, 1)
    status = kubelet.run_pod(simple_pod("slice", {SMALL: 1}))
    assert status.grants[0].envs["NVIDIA_VISIBLE_DEVICES"].startswith("MIG-")
    driver.listed = (*driver.listed, made_up_gpu(2))
    wait_for(kubelet, RESOURCE, 2, 2)
    wait_for(kubelet, SMALL, 7, 7)
    assert untouched in plugin.sockets(), "no restart of what is not concerned"
    assert plugin.metric("gpuplugin_socket_renewals_total") == 0


def test_ask_18_a_resource_that_is_left_ends_with_an_empty_list(
    kubelet_dir: Path, unshared: Path, start_plugin: StartPlugin, registration: str
) -> None:
    """#240 no cleanup after a MIG change, #214, #58, #1228; kubernetes #92396.

    The kubelet keeps a resource whose plugin vanished for five minutes, with its capacity.
    """
    told: list[KubeletEvent] = []
    with Kubelet(kubelet_dir, listener=told.append) as kubelet:
        driver = FakeDriver(0)
        driver.listed = (with_mig(made_up_gpu(0), *["1g.10gb"] * 7),)
        plugin = start_plugin(driver, registration, config_file=unshared)
        wait_for(kubelet, SMALL, 7, 7)
        driver.listed = (with_mig(made_up_gpu(0), "3g.40gb", "3g.40gb"),)
        wait_for(kubelet, LARGE, 2, 2)
        wait_for(kubelet, SMALL, 0, 0)
        eventually(lambda: len(plugin.sockets()) == 1)
        eventually(lambda: plugin.ready)
        of_small = [one.text for one in told if one.text.startswith(SMALL)]
        lists = [text for text in of_small if "bytes" in text]
        assert lists[-1] == f"{SMALL}: 0 healthy, 0 not, 0 bytes"
        assert kubelet.view().amounts[SMALL] == Amount(0, 0)
