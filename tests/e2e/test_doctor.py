"""`gpuplugin doctor` as a process: on a sound node, on sick ones, and where nothing is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.conftest import RESOURCE, Node, Plugin, Process, eventually, gpuplugin
from tests.e2e.test_commands import needs_no_driver

if TYPE_CHECKING:
    from pathlib import Path


def examine(*arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit status, and checks by name."""
    result = gpuplugin("doctor", "--json", *arguments)
    assert result.stdout, result.stderr
    answer = json.loads(result.stdout)
    assert answer["exit_status"] == result.returncode
    return result.returncode, {one["check"]: one for one in answer["checks"]}


def what(check: dict[str, Any]) -> str:
    return "\n".join(problem["what"] for problem in check["problems"])


def do(check: dict[str, Any]) -> str:
    return "\n".join(problem["do"] for problem in check["problems"])


def beside(node: Node) -> tuple[str, ...]:
    """Look at the node's folder as at a host, whatever there is on this machine."""
    (node.dir / "k").symlink_to(".")
    return ("--root", str(node.dir), "--kubelet-dir", "/k")


def node_with_plugin(node: Node, *arguments: str) -> tuple[Process, Plugin]:
    kubelet = node.start_kubelet()
    plugin = Plugin("--backend", "sim", "--scenario", "homelab", *node.at, *arguments)
    return kubelet, plugin


def test_a_sound_node_is_well(node: Node) -> None:
    kubelet, plugin = node_with_plugin(node)
    with kubelet, plugin:
        node.wait_allocatable(10)
        at = (*beside(node), "--backend", "sim", "--scenario", "homelab")
        status, checks = examine(*at)
        assert {name: what(one) for name, one in checks.items() if one["problems"]} == {}
        assert status == 0
        assert checks["kubelet-socket"]["severity"] == "ok"
        assert checks["plugin-runs"]["severity"] == "ok"
        assert "the kubelet has listened for" in checks["kubelet-contact"]["text"]

        text = gpuplugin("doctor", *at).stdout
        assert f"{RESOURCE}: 10" in text
        assert "0 failed" in text


@pytest.mark.slow
def test_a_kubelet_that_is_gone_is_told_with_the_time_of_the_last_contact(node: Node) -> None:
    kubelet, plugin = node_with_plugin(node)
    with plugin:
        with kubelet:
            node.wait_allocatable(10)
            kubelet.stop()
        eventually(lambda: plugin.get("/ready")[0] == 503, "the plugin misses its kubelet")
        status, checks = examine(*beside(node), "--backend", "sim", "--scenario", "homelab")
        assert status == 3
        contact = checks["kubelet-contact"]
        assert "no contact to the kubelet, last " in what(contact)
        assert "last never" not in what(contact)
        assert checks["kubelet-socket"]["severity"] == "fail"


def test_a_sick_gpu_is_told_with_its_cure(node: Node) -> None:
    kubelet, plugin = node_with_plugin(node)
    with kubelet, plugin:
        node.wait_allocatable(10)
        node.inject("--gpu", "0", "--xid", "79")
        node.wait_allocatable(0)
        status, checks = examine(*beside(node), "--backend", "sim", "--scenario", "homelab")
        assert status == 3
        assert "GPU 0 is Unhealthy" in what(checks["gpu-health"])
        assert "reboot" in do(checks["gpu-health"])
        assert checks["registered"]["severity"] == "skip"
        assert "restart the plugin's pod" not in json.dumps(checks)


@pytest.mark.slow
def test_the_plugin_of_the_folder_is_asked_which_node_it_is(node: Node, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("sharing: {timeSlicing: {resources: [{name: gpu, replicas: 7}]}}\n")
    kubelet, plugin = node_with_plugin(node, "--config-file", str(file))
    with kubelet, plugin:
        node.wait_allocatable(7)
        result = gpuplugin("doctor", *node.at, "--json")
        answer = json.loads(result.stdout)
        checks = {one["check"]: one for one in answer["checks"]}
        assert answer["asked"].startswith(f"{node.dir}/plugins_registry/gpuplugin/.gpuplugin-")
        assert checks["advertised"]["text"] == f"{RESOURCE}: 7"
        assert str(file) in checks["configuration"]["text"]
        assert {name for name, one in checks.items() if one["severity"] == "fail"} == set()
        assert "simulated" in checks["runtime"]["text"]
        header, *_ = gpuplugin("doctor", *node.at).stdout.splitlines()
        assert header == f"asked: {answer['asked']}; GPUs: sim; kubelet: {node.dir}"
        (tmp_path / "other").mkdir()
        other = ("--kubelet-dir", str(tmp_path / "other"), "--backend", "sim")
        result = gpuplugin("doctor", *other, "--listen-address", f"127.0.0.1:{plugin.port}")
        assert result.stdout.startswith("asked: no plugin (no control socket below")


def hanging(tmp_path: Path, what: str, gpu: str = "") -> str:
    file = tmp_path / "hang.yaml"
    file.write_text(
        f"gpus: [{{model: t4, count: 2}}]\nfaults: [{{at_s: 0, what: {{kind: {what}}}{gpu}}}]\n"
    )
    return str(file)


def test_a_driver_that_hangs_does_not_hold_the_doctor(node: Node, tmp_path: Path) -> None:
    scenario = hanging(tmp_path, "driver-hang")
    status, checks = examine(
        *node.at, "--backend", "sim", "--scenario", scenario, "--timeout", "0.2"
    )
    assert status == 3
    assert "takes over 0.2 s" in what(checks["driver-answers"])


def test_a_gpu_that_hangs_hides_no_other(node: Node, tmp_path: Path) -> None:
    scenario = hanging(tmp_path, "hang", ", gpu: 1")
    status, checks = examine(*node.at, "--backend", "sim", "--scenario", scenario)
    assert status == 3
    assert checks["driver-answers"]["severity"] == "ok"
    assert what(checks["gpu-health"]).startswith("GPU 1 cannot be read")


@needs_no_driver
def test_ask_14_without_a_library_the_paths_and_cures_are_named(tmp_path: Path) -> None:
    library = tmp_path / "run/nvidia/driver/usr/lib64/libnvidia-ml.so.1"
    library.parent.mkdir(parents=True)
    library.write_text("not empty")
    status, checks = examine("--root", str(tmp_path))
    assert status == 3
    assert "NVIDIA_DRIVER_ROOT=/run/nvidia/driver " in do(checks["nvml-library"])
    library.unlink()
    _, checks = examine("--root", str(tmp_path))
    assert "runtimeClassName" in do(checks["nvml-library"])
    assert checks["driver-answers"]["severity"] == "fail"


def test_ask_15_a_node_without_a_plugin_names_the_label(tmp_path: Path) -> None:
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030000\n")
    status, checks = examine("--root", str(tmp_path), "--listen-address", "127.0.0.1:1")
    assert status == 3
    assert "pci-0300_10de.present" in do(checks["plugin-runs"])
    assert "has no driver" in what(checks["gpus-on-bus"])


@needs_no_driver
def test_ask_16_a_plugin_that_waits_for_a_driver_says_so(node: Node) -> None:
    with Plugin(*node.at, "--driver-root-ctr-path", str(node.dir)) as plugin:
        plugin.says("libnvidia-ml.so.1 was not found")
        status, checks = examine(*node.at, "--listen-address", f"127.0.0.1:{plugin.port}")
        assert status == 3
        assert "libnvidia-ml.so.1 was not found" in what(checks["plugin-ready"])
        assert "tries again by itself" in do(checks["plugin-ready"])
        assert checks["plugin-runs"]["severity"] == "ok"


def test_ask_20_a_configuration_with_mistakes_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("sharing:\n  timeSlicing:\n    resources: [{name: gpu, replicas: ten}]\n")
    status, checks = examine(
        "--backend", "sim", "--config-file", str(file), "--root", str(tmp_path)
    )
    assert status == 3
    assert f"{file}:3: sharing.timeSlicing.resources[0].replicas" in what(checks["configuration"])
    assert checks["gpu-health"]["severity"] == "ok"


def test_ask_20_a_configuration_that_nobody_reads_and_an_unknown_key(tmp_path: Path) -> None:
    mounted = tmp_path / "etc/gpuplugin/config.yaml"
    mounted.parent.mkdir(parents=True)
    mounted.write_text("version: v1\ntimeSlicing: {}\n")
    at = ("--backend", "sim", "--root", str(tmp_path))
    _, checks = examine(*at)
    assert "CONFIG_FILE=/etc/gpuplugin/config.yaml" in do(checks["configuration"])
    _, checks = examine(*at, "--config-file", str(mounted))
    assert "timeSlicing" in what(checks["configuration"])
    assert checks["configuration"]["severity"] == "warn"


@pytest.mark.parametrize(
    "root", ["var/lib/k0s/kubelet", "var/snap/microk8s/common/var/lib/kubelet"]
)
def test_ask_20_a_kubelet_in_another_folder_is_found(tmp_path: Path, root: str) -> None:
    folder = tmp_path / root / "device-plugins"
    folder.mkdir(parents=True)
    (folder / "kubelet.sock").touch()
    status, checks = examine("--backend", "sim", "--root", str(tmp_path))
    assert status == 3
    assert f"GPUPLUGIN_KUBELET_DIR=/{root} " in do(checks["kubelet-folder"])


@pytest.mark.slow
def test_warnings_alone_are_status_1(node: Node) -> None:
    kubelet, plugin = node_with_plugin(node, "--mig-strategy", "mixed")
    with kubelet, plugin:
        node.wait_allocatable(10)
        at = (*beside(node), "--backend", "sim", "--scenario", "homelab", "--mig-strategy", "mixed")
        status, checks = examine(*at)
        assert status == 1, {name: what(one) for name, one in checks.items()}
        assert "no GPU is in MIG mode" in what(checks["mig-strategy"])


def test_wrong_usage_is_status_2() -> None:
    assert gpuplugin("doctor", "--timeout", "soon").returncode == 2
