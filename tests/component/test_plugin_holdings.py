"""No GPU is offered in one form while it is held in the other, and one can be forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gpuplugin.daemon.serving.sockets import KubeletDirs
from sim.kubelet import Amount, Phase, simple_pod
from sim.node.realtime import SimBackend
from tests.component.dranode import DraNode
from tests.component.running import RESOURCE
from tests.component.test_plugin_control import command
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from pathlib import Path

    from sim.kubelet import Kubelet
    from tests.component.conftest import MakeHardware, StartPlugin

SHARED = "nvidia.com/gpu.shared"
SHARE_INDEX_1 = """\
version: v1
sharing:
  timeSlicing:
    resources:
      - {name: nvidia.com/gpu, rename: nvidia.com/gpu.shared, devices: ["1"], replicas: 4}
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuplugin.daemon.cluster.holdings._PERIOD_S", 0.2)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(SHARE_INDEX_1)
    return file


@pytest.mark.parametrize("pod_metrics", ["true", "false"])
def test_a_gpu_with_another_index_is_not_offered_in_another_form_while_it_is_held(
    kubelet: Kubelet,
    make_hardware: MakeHardware,
    start_plugin: StartPlugin,
    config: Path,
    caplog: pytest.LogCaptureFixture,
    pod_metrics: str,
) -> None:
    """Holdings are known from the pod-resources API, or from the kubelet's checkpoint."""
    hardware = make_hardware(3)
    flags = {"--pod-metrics": pod_metrics}
    plugin = start_plugin(hardware.backend, config_file=config, flags=flags)
    both = {RESOURCE: Amount(2, 2), SHARED: Amount(4, 4)}
    kubelet.wait_until(lambda node: node.amounts == both, DEADLINE_S)
    for name, resource in (("whole-0", RESOURCE), ("whole-1", RESOURCE), ("sharer", SHARED)):
        assert kubelet.run_pod(simple_pod(name, {resource: 1})).phase is Phase.RUNNING
    eventually(lambda: list(plugin.folder.glob(".gpuplugin-selection.json")))
    plugin.stop()

    hardware.unplug(0)  # the driver numbers the others anew: 1 is 0, and 2 is 1
    plugin = start_plugin(SimBackend(hardware.node), config_file=config, flags=flags)

    kubelet.wait_until(
        lambda node: node.amounts == {RESOURCE: Amount(1, 0), SHARED: Amount(4, 0)}, DEADLINE_S
    )
    assert "holds it whole" in str(plugin.get("/ready").parts["inventory"]["text"])
    eventually(lambda: any("is not offered" in one.message for one in caplog.records))
    eventually(lambda: any("select by UUID" in one.message for one in caplog.records))
    assert kubelet.run_pod(simple_pod("late", {SHARED: 1})).phase is Phase.PENDING

    (whole,) = [name for name, ids in _held(kubelet).items() if ids == (hardware.uuids[2],)]
    kubelet.delete_pod(whole)
    kubelet.wait_until(lambda node: node.amounts[SHARED] == Amount(4, 4), DEADLINE_S)
    kubelet.delete_pod("sharer")
    kubelet.wait_until(lambda node: node.amounts[RESOURCE] == Amount(1, 1), DEADLINE_S)


def test_a_gpu_that_was_replaced_is_forgotten_by_a_person(
    kubelet: Kubelet, make_hardware: MakeHardware, start_plugin: StartPlugin
) -> None:
    hardware = make_hardware(2)
    old = hardware.uuids[1]
    plugin = start_plugin(hardware.backend)
    kubelet.wait_until(lambda node: node.amounts.get(RESOURCE) == Amount(20, 20), DEADLINE_S)
    while not any(one.startswith(old) for ids in _held(kubelet).values() for one in ids):
        kubelet.run_pod(simple_pod(f"pod-{len(_held(kubelet))}", {RESOURCE: 1}))
    refused = command(plugin, "forget", old)
    assert refused.returncode == 1
    assert "responds" in refused.stderr

    hardware.replace(1)
    kubelet.wait_until(lambda node: node.amounts[RESOURCE] == Amount(30, 20), DEADLINE_S)
    assert "is held by" in command(plugin, "forget", old).stderr  # and not what it read at first

    for key in _held(kubelet):
        kubelet.delete_pod(key)
    eventually(lambda: command(plugin, "forget", old).returncode == 0)
    kubelet.wait_until(lambda node: node.amounts[RESOURCE] == Amount(20, 20), DEADLINE_S)
    assert plugin.samples("gpuplugin_gpu_health") != []
    assert all(one.labels["uuid"] != old for one in plugin.samples("gpuplugin_gpu_health"))
    unknown = command(plugin, "forget", old)
    assert "no GPU has the UUID" in unknown.stderr


def test_a_selection_that_cannot_be_kept_harms_nothing(
    kubelet: Kubelet,
    kubelet_dir: Path,
    make_hardware: MakeHardware,
    start_plugin: StartPlugin,
    config: Path,
) -> None:
    hardware = make_hardware(2)
    folder = KubeletDirs(kubelet_dir).plugin_watcher
    (folder / ".gpuplugin-selection.json").mkdir(parents=True)
    plugin = start_plugin(hardware.backend, config_file=config)
    kubelet.wait_until(lambda node: node.amounts.get(SHARED) == Amount(4, 4), DEADLINE_S)
    assert plugin.metric("gpuplugin_task_restarts_total", task="holdings") == 0


@pytest.mark.parametrize("broken", ["", "{", "[" * 100_000])
def test_a_selection_that_cannot_be_read_is_written_anew(
    kubelet_dir: Path,
    make_hardware: MakeHardware,
    start_plugin: StartPlugin,
    config: Path,
    broken: str,
) -> None:
    """Nor does a checkpoint of the kubelet that is no better."""
    hardware = make_hardware(2)
    kept = KubeletDirs(kubelet_dir).plugin_watcher / ".gpuplugin-selection.json"
    checkpoint = kubelet_dir / "device-plugins/kubelet_internal_checkpoint"
    for file in (kept, checkpoint):
        file.parent.mkdir(parents=True)
        file.write_text(broken)
    plugin = start_plugin(hardware.backend, config_file=config)
    eventually(lambda: hardware.uuids[1] in kept.read_text())
    assert plugin.metric("gpuplugin_task_restarts_total") == 0


def _held(kubelet: Kubelet) -> dict[str, tuple[str, ...]]:
    """Device ids by pod."""
    return {
        key: tuple(device for grant in pod.status.grants for device in grant.device_ids)
        for key, pod in kubelet.view().pods.items()
    }


def test_with_dra_a_gpu_is_not_offered_that_a_pod_holds_by_a_device_plugin(
    kubelet: Kubelet,
    kubelet_dir: Path,
    make_hardware: MakeHardware,
    start_plugin: StartPlugin,
    node: DraNode,
) -> None:
    """As on a node that goes over to DRA with pods on it; the scheduler knows nothing of them."""
    hardware = make_hardware(2)
    plugin = start_plugin(hardware.backend)
    kubelet.wait_until(lambda one: one.amounts == {RESOURCE: Amount(20, 20)}, DEADLINE_S)
    assert kubelet.run_pod(simple_pod("old", {RESOURCE: 1})).phase is Phase.RUNNING
    plugin.stop()
    over = DraNode(kubelet_dir, node.server)

    def tainted() -> list[str]:
        return [taint["key"] for one in over.devices() for taint in one.get("taints", ())]

    with over.plugin(SimBackend(hardware.node)) as driver:
        eventually(lambda: tainted() == ["gpu.gpuplugin.dev/withheld"])
        text = str(driver.get("/ready").parts["inventory"]["text"])
        assert "pod default/old holds it by a device plugin" in text
        free = next(one for one in over.devices() if "taints" not in one)
        claim = over.allocate(free)
        with over.connect() as calls:
            calls.prepared(claim)
        kubelet.delete_pod("old")
        eventually(lambda: tainted() == [])
