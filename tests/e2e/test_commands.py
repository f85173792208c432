"""Every command as a user runs it: what it prints, where, and with which exit status."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from gpuplugin.cli.main import main
from gpuplugin.version import VERSION
from tests.e2e.conftest import Node, Plugin, Process, eventually, gpuplugin

if TYPE_CHECKING:
    from pathlib import Path


def _driver_present() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


needs_no_driver = pytest.mark.skipif(_driver_present(), reason="this machine has a driver")


def test_version() -> None:
    assert gpuplugin("--version").stdout == f"gpuplugin {VERSION}\n"


@pytest.mark.parametrize(
    "arguments", [(), ("fly",), ("sim",), ("sim", "inject", "--gpu", "0"), ("run", "--colour")]
)
def test_wrong_usage_is_status_2_and_explained(arguments: tuple[str, ...]) -> None:
    result = gpuplugin(*arguments)
    assert result.returncode == 2
    assert "usage: gpuplugin" in result.stderr


def test_devices_lists_gpus_and_what_is_advertised() -> None:
    result = gpuplugin("devices", "--backend", "sim", "--json")
    assert result.returncode == 0, result.stderr
    listed = json.loads(result.stdout)
    assert [gpu["index"] for gpu in listed["gpus"]] == list(range(8))
    (resource,) = listed["resources"]
    assert (resource["name"], resource["replicas"]) == ("nvidia.com/gpu", 10)
    expected = [f"{gpu['uuid']}::{replica}" for gpu in listed["gpus"] for replica in range(10)]
    assert resource["devices"] == expected

    text = gpuplugin("devices", "--backend", "sim").stdout
    assert "NVIDIA H100 80GB HBM3" in text
    assert "advertised: nvidia.com/gpu, 80 devices, 10 replicas per GPU" in text


def test_devices_follows_a_configuration_file_and_a_scenario(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "sharing:\n  timeSlicing:\n    renameByDefault: true\n"
        "    resources: [{name: gpu, replicas: 3}]\n"
    )
    result = gpuplugin(
        *("devices", "--backend", "sim", "--scenario", "homelab"),
        *("--config-file", str(file), "--json"),
    )
    (resource,) = json.loads(result.stdout)["resources"]
    assert resource["name"] == "nvidia.com/gpu.shared"
    assert [one.partition("::")[2] for one in resource["devices"]] == ["0", "1", "2"]


def test_an_unknown_scenario_names_those_that_there_are() -> None:
    result = gpuplugin("devices", "--backend", "sim", "--scenario", "nowhere")
    assert result.returncode == 1
    assert "homelab" in result.stderr


def test_config_check_prints_the_effective_configuration(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "version: v1\nsharing:\n  timeSlicing:\n    resources:\n"
        "    - {name: nvidia.com/gpu, replicas: 4}\n"
    )
    result = gpuplugin("config", "check", str(file), "--json")
    assert result.returncode == 0
    answer = json.loads(result.stdout)
    assert answer["ok"] is True
    assert answer["config"]["sharing"]["timeSlicing"] == {
        "renameByDefault": False,
        "failRequestsGreaterThanOne": False,
        "resources": [{"name": "nvidia.com/gpu", "devices": "all", "replicas": 4}],
    }
    again = tmp_path / "again.yaml"
    again.write_text(gpuplugin("config", "check", str(file)).stdout)
    assert json.loads(gpuplugin("config", "check", str(again), "--json").stdout) == answer


def test_config_check_notes_a_selection_by_index(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    uuid = "GPU-8dcd427f-483b-b48f-d7e5-75fb19a52b76"
    entry = "{name: gpu, replicas: 2, devices: [%s]}"
    file.write_text(f"sharing: {{timeSlicing: {{resources: [{entry % f'1, {uuid}'}]}}}}\n")
    result = gpuplugin("config", "check", str(file))
    (note,) = result.stderr.splitlines()
    assert "resources[0].devices: an index (1)" in note
    assert json.loads(gpuplugin("config", "check", str(file), "--json").stdout)["notes"]
    file.write_text(f"sharing: {{timeSlicing: {{resources: [{entry % uuid}]}}}}\n")
    assert gpuplugin("config", "check", str(file)).stderr == ""


def test_config_check_names_every_error_with_its_key_and_line(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "version: v1\nflags:\n  failOnInitError: maybe\nsharing:\n  timeSlicing:\n"
        "    resources:\n    - name: nvidia.com/gpu\n      replicas: ten\n"
    )
    result = gpuplugin("config", "check", str(file))
    assert result.returncode == 1
    assert f"{file}:3: flags.failOnInitError" in result.stderr
    assert f"{file}:8: sharing.timeSlicing.resources[0].replicas" in result.stderr
    errors = json.loads(gpuplugin("config", "check", str(file), "--json").stdout)["errors"]
    assert {error["key"] for error in errors} == {
        "flags.failOnInitError",
        "sharing.timeSlicing.resources[0].replicas",
    }


def test_run_with_a_wrong_configuration_says_everything_and_ends(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("sharing:\n  mps: {}\n")
    result = gpuplugin("run", "--config-file", str(file), "--mig-strategy", "triple")
    assert result.returncode == 1
    assert f"{file}:2: sharing.mps" in result.stderr
    assert "--mig-strategy: flags.migStrategy" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("sim", "node", "show"),
        ("sim", "pod", "list"),
        ("sim", "inject", "--gpu", "0", "--xid", "79"),
    ],
)
def test_remote_commands_without_anybody_there(node: Node, arguments: tuple[str, ...]) -> None:
    result = gpuplugin(*arguments, *node.at)
    assert result.returncode == 1
    assert "nobody answers at" in result.stderr


def test_inject_refuses_a_gpu_that_there_is_not(node: Node) -> None:
    with Plugin("--backend", "sim", "--scenario", "homelab", *node.at) as plugin:
        plugin.says("watching 1 GPUs")
        result = gpuplugin("sim", "inject", *node.at, "--gpu", "7", "--xid", "79")
        assert result.returncode == 1
        assert "no GPU has the UUID 7; this node has GPUs 0 to 0" in result.stderr


@needs_no_driver
def test_without_a_driver_the_plugin_says_what_to_set_and_goes_on_trying(node: Node) -> None:
    with Plugin(*node.at, "--driver-root-ctr-path", str(node.dir)) as plugin:
        plugin.says("libnvidia-ml.so.1 was not found; searched: ")
        assert str(node.dir / "usr/lib/x86_64-linux-gnu") in plugin.output
        assert "NVIDIA_DRIVER_ROOT" in plugin.output
        status, body = plugin.get("/ready")
        assert status == 503
        assert "libnvidia-ml.so.1 was not found" in json.loads(body)["parts"]["monitor"]["text"]
        assert plugin.get("/health")[0] == 200
        assert not list(node.dir.rglob("gpuplugin-*.sock"))
        assert plugin.running
        assert plugin.stop() == 0


@needs_no_driver
@pytest.mark.parametrize("flag", ["--fail-on-init-error", "--fail-on-init-error=true"])
def test_without_a_driver_the_plugin_ends_where_it_was_asked_to(node: Node, flag: str) -> None:
    with Plugin(*node.at, flag) as plugin:
        assert plugin.exit_status() == 1
        assert "libnvidia-ml.so.1 was not found" in plugin.output


@needs_no_driver
def test_devices_without_a_driver() -> None:
    result = gpuplugin("devices")
    assert result.returncode == 1
    first, *details = result.stderr.splitlines()
    assert first == (
        "gpuplugin: there is no NVIDIA driver on this machine: libnvidia-ml.so.1 was not found"
    )
    assert "--backend sim" in details[0]
    assert "    /usr/lib64/libnvidia-ml.so.1" in details


def test_a_second_stand_in_does_not_take_over_the_folder(node: Node) -> None:
    with node.start_kubelet() as kubelet:
        result = gpuplugin("sim", "up", "homelab", *node.at)
        assert result.returncode == 1
        assert result.stderr == (
            f"gpuplugin: {node.dir} is in use by the kubelet stand-in of process "
            f"{kubelet.pid}: stop that, or choose another --kubelet-dir\n"
        )
        assert kubelet.running
        kubelet.signal(signal.SIGKILL)
        kubelet.exit_status()
    with node.start_kubelet():  # a lock ends with its process
        pass


def test_a_manifest_that_is_no_pod_is_told(node: Node, tmp_path: Path) -> None:
    file = tmp_path / "deployment.yaml"
    file.write_text("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n")
    result = gpuplugin("sim", "kubelet", *node.at, "--pods", str(file))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert f"{file}:2: only Pods can be run, found kind 'Deployment'" in result.stderr


def test_a_folder_that_a_user_may_not_see_is_told(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = node.dir / "plugins_registry"
    hidden.mkdir()
    main(["health", *node.at])  # what it needs is loaded before
    capsys.readouterr()
    user = os.geteuid()
    node.dir.chmod(0o755)
    hidden.chmod(0)
    try:
        if user == 0:
            os.seteuid(65534)
        assert main(["health", *node.at]) == 1
    finally:
        os.seteuid(user)
        hidden.chmod(0o755)
    assert f"this user may not look into {hidden}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "shown"), [(("sim", "node", "show"), "RESOURCE"), (("health",), "UUID")]
)
def test_a_screen_is_watched_until_ctrl_c(node: Node, words: tuple[str, ...], shown: str) -> None:
    with node.start_kubelet(), Plugin("--backend", "sim", *node.at):
        node.wait_allocatable(80)
        with Process(*words, *node.at, "--watch") as watching:
            eventually(lambda: watching.output.count(shown) > 1, "it is shown again")
            watching.signal(signal.SIGINT)
            assert watching.exit_status() == 0, watching.output


def test_a_picture_that_cannot_be_saved_is_told_at_once() -> None:
    result = gpuplugin("demo", "--picture", "/nowhere/demo.svg")
    assert result.returncode == 1
    assert result.stderr.startswith("gpuplugin: /nowhere/demo.svg cannot be written: /nowhere is")


def test_the_demo_plays_and_all_is_as_it_should_be() -> None:
    result = gpuplugin("demo", "--pace", "20")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "NO " not in result.stdout
    assert "NOT SO" not in result.stdout
    assert "one list update" in result.stdout
    assert "exit status 0" in result.stdout


@pytest.mark.slow
def test_the_demo_with_dra_plays_and_all_is_as_it_should_be() -> None:
    result = gpuplugin("demo", "--dra", "--pace", "20")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "NOT SO" not in result.stdout
    for part in ("eighty pods run", "the waiting pod runs", "exit status 0"):
        assert f"ok  {part}" in result.stdout or f"{part}\n" in result.stdout, part
    assert "NodePrepareResources: 82 calls" in result.stdout


def test_the_daemon_loads_neither_the_simulator_nor_the_terminal_toolkit() -> None:
    script = (
        "import sys, gpuplugin.cli.run, hal.nvml;"
        "print(sorted({'simpy', 'rich', 'sim', 'hypothesis'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
