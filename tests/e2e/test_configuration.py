"""Configurations as people have them on their clusters, and changes while the plugin runs."""

from __future__ import annotations

import json
import re
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.conftest import RESOURCE, Node, eventually, gpuplugin
from tests.e2e.served import StartPlugin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Plugin

PLAIN = """\
version: v1
sharing:
  timeSlicing:
    resources:
    - name: nvidia.com/gpu
      replicas: 10
"""
RENAMED = """\
version: v1
flags:
  migStrategy: none
sharing:
  timeSlicing:
    renameByDefault: true
    failRequestsGreaterThanOne: true
    resources:
    - name: nvidia.com/gpu
      replicas: 4
"""
MIXED = """\
version: v1
flags:
  migStrategy: "mixed"
  failOnInitError: true
  nvidiaDriverRoot: "/"
sharing:
  timeSlicing:
    resources:
    - name: nvidia.com/gpu
      replicas: 2
    - name: nvidia.com/mig-1g.10gb
      replicas: 3
"""
PER_DEVICE = """\
version: v1
sharing:
  timeSlicing:
    renameByDefault: false
    resources:
    - name: nvidia.com/gpu
      devices: [1]
      replicas: 4
    - name: nvidia.com/gpu
      rename: nvidia.com/gpu.small
      devices: ["2"]
      replicas: 10
"""
FLAGS = """\
version: v1
flags:
  migStrategy: none
  failOnInitError: false
  nvidiaDriverRoot: /run/nvidia/driver
  gdsEnabled: true
  mofedEnabled: false
  plugin:
    passDeviceSpecs: true
    deviceListStrategy: volume-mounts
    deviceIDStrategy: index
    cdiAnnotationPrefix: cdi.k8s.io/
    nvidiaCTKPath: /usr/bin/nvidia-ctk
    containerDriverRoot: /driver-root
  gfd:
    oneshot: false
    noTimestamp: false
    outputFile: /etc/kubernetes/node-feature-discovery/features.d/gfd
    sleepInterval: 60s
resources:
  gpus:
  - pattern: "*"
    name: nvidia.com/gpu
  mig:
  - pattern: "*"
    name: nvidia.com/gpu
"""


@pytest.fixture(params=["sim", pytest.param("nvml", marks=pytest.mark.slow)])
def start_plugin(node: Node, request: pytest.FixtureRequest) -> Iterator[StartPlugin]:
    """Starts the plugin with each backend."""
    with ExitStack() as stack:
        yield StartPlugin(request.param, node, stack)


@pytest.mark.parametrize(
    ("text", "scenario", "expected"),
    [
        pytest.param(
            PLAIN, "default", {"nvidia.com/gpu": 80}, id="plain", marks=pytest.mark.slow
        ),
        pytest.param(
            RENAMED,
            "default",
            {"nvidia.com/gpu.shared": 32},
            id="renamed",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            MIXED,
            "mig",
            {
                "nvidia.com/gpu": 2,
                "nvidia.com/mig-1g.10gb": 24,
                "nvidia.com/mig-2g.20gb": 1,
                "nvidia.com/mig-3g.40gb": 1,
            },
            id="MIG mixed",
        ),
        pytest.param(
            PER_DEVICE, "default", {"nvidia.com/gpu": 10, "nvidia.com/gpu.small": 10},
            id="per device", marks=pytest.mark.slow,
        ),
        pytest.param(
            FLAGS, "default", {"nvidia.com/gpu": 8}, id="many flags", marks=pytest.mark.slow
        ),
    ],
)  # fmt: skip
def test_files_from_clusters_run_unchanged(
    node: Node,
    start_plugin: StartPlugin,
    tmp_path: Path,
    text: str,
    scenario: str,
    expected: dict[str, int],
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    checked = gpuplugin("config", "check", str(file), "--strict")
    assert checked.returncode == 0, checked.stderr
    arguments = ("--config-file", str(file))
    with node.start_kubelet(), start_plugin(*arguments, scenario=scenario):
        for name, count in expected.items():
            _wait(node, name, count)
        assert {name: one["allocatable"] for name, one in _resources(node).items()} == expected


def test_a_container_gets_what_the_flags_say(
    node: Node, start_plugin: StartPlugin, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(FLAGS)
    with node.start_kubelet(), start_plugin("--config-file", str(file)):
        _wait(node, RESOURCE, 8)
        (grant,) = node.create("one")["grants"]
        assert grant["envs"] == {
            "NVIDIA_GDS": "enabled",
            "NVIDIA_VISIBLE_DEVICES": "/var/run/nvidia-container-devices",
        }
        (mount,) = grant["mounts"]
        index = mount.rpartition("/")[2]
        assert mount == f"/dev/null:/var/run/nvidia-container-devices/{index}"
        assert f"/run/nvidia/driver/dev/nvidia{index}" in grant["devices"]
        # Real device nodes that this machine does not have cannot be given to a container.
        if start_plugin.backend == "sim" or Path("/run/nvidia/driver/dev/nvidiactl").exists():
            assert "/run/nvidia/driver/dev/nvidiactl" in grant["devices"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(PLAIN)
    return path


@pytest.fixture
def plugin(node: Node, start_plugin: StartPlugin, file: Path) -> Iterator[Plugin]:
    with (
        node.start_kubelet(),
        start_plugin("--config-file", str(file)) as process,
    ):
        node.wait_allocatable(80)
        yield process


def test_fewer_replicas_in_a_running_plugin(node: Node, plugin: Plugin, file: Path) -> None:
    before = [node.create(f"pod-{number}")["grants"] for number in range(9)]
    file.write_text(PLAIN.replace("10", "4"))
    node.wait_allocatable(32)
    assert plugin.running
    pods = json.loads(gpuplugin("sim", "pod", "list", *node.at, "--json").stdout)["pods"]
    assert [pod["phase"] for pod in pods] == ["Running"] * 9
    assert [pod["grants"] for pod in pods] == before
    assert "the configuration from" in plugin.output


def test_a_swapped_configmap_link_is_a_change(
    node: Node, start_plugin: StartPlugin, tmp_path: Path
) -> None:
    for name, text in (("one", PLAIN), ("two", PLAIN.replace("10", "2"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
    link = tmp_path / "..data"
    link.symlink_to("one")
    file = tmp_path / "config.yaml"
    file.symlink_to("..data/config.yaml")
    with node.start_kubelet(), start_plugin("--config-file", str(file)):
        node.wait_allocatable(80)
        fresh = tmp_path / "..data_tmp"
        fresh.symlink_to("two")
        fresh.rename(link)
        node.wait_allocatable(16)


def test_a_bad_edit_changes_nothing_but_what_is_told(
    node: Node, plugin: Plugin, file: Path
) -> None:
    updates = node.wait_allocatable(80)["list_updates"]
    file.write_text(PLAIN.replace("10", "many"))
    plugin.says("the last good one stays in force")
    assert f"{file}:6: sharing.timeSlicing.resources[0].replicas" in plugin.output
    assert node.wait_allocatable(80)["list_updates"] == updates
    status, body = plugin.get("/ready")
    assert status == 200
    assert "a change was refused" in json.loads(body)["parts"]["config"]["text"]
    assert "gpuplugin_config_last_reload_successful 0.0" in plugin.get("/metrics")[1]

    file.write_text(PLAIN.replace("10", "2"))
    node.wait_allocatable(16)
    assert "gpuplugin_config_last_reload_successful 1.0" in plugin.get("/metrics")[1]


def test_what_does_not_fit_into_a_list_is_refused_with_what_fits(
    node: Node, plugin: Plugin, file: Path
) -> None:
    file.write_text(PLAIN.replace("10", "20000"))
    plugin.says("set sharing.timeSlicing.resources[].replicas to at most ")
    node.wait_allocatable(80)
    found = re.search(r"replicas to at most (\d+)", plugin.output)
    assert found
    fits = int(found[1])
    assert 62_601 <= fits * 8 <= 66_576

    file.write_text(PLAIN.replace("10", str(fits)))
    node.wait_allocatable(fits * 8)


def test_sighup_reads_the_file_at_once(node: Node, plugin: Plugin, file: Path) -> None:
    plugin.signal(signal.SIGHUP)
    plugin.says("is in force")
    assert plugin.running
    node.wait_allocatable(80)


def test_a_renamed_resource_leaves_nothing_behind(node: Node, plugin: Plugin, file: Path) -> None:
    file.write_text(RENAMED)
    _wait(node, "nvidia.com/gpu.shared", 32)
    _wait(node, RESOURCE, 0)
    assert _resources(node)[RESOURCE]["capacity"] == 0


def test_cdi_specs_are_there_before_pods_and_follow_the_configuration(
    node: Node, start_plugin: StartPlugin, tmp_path: Path
) -> None:
    specs = tmp_path / "cdi"
    file = tmp_path / "config.yaml"
    file.write_text("flags: {plugin: {deviceListStrategy: [cdi-cri]}}\n")
    arguments = ("--config-file", str(file), "--cdi-root", str(specs))
    with node.start_kubelet(), start_plugin(*arguments) as plugin:
        _wait(node, RESOURCE, 8)
        spec_file = specs / "k8s.device-plugin.nvidia.com-gpu.json"
        assert spec_file.stat().st_mode & 0o777 == 0o644
        spec = json.loads(spec_file.read_text())
        names = {f"{spec['kind']}={device['name']}" for device in spec["devices"]}
        assert len(names) == 8
        (grant,) = node.create("one")["grants"]
        assert grant["envs"] == {}
        assert set(grant["cdi_devices"]) <= names
        assert len(grant["cdi_devices"]) == 1

        file.write_text("flags: {plugin: {deviceListStrategy: [envvar]}}\n")
        eventually(lambda: not spec_file.exists(), "the spec is removed")
        assert plugin.running


def test_specs_that_cannot_be_written_are_told(
    node: Node, start_plugin: StartPlugin, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    arguments = ("--device-list-strategy", "cdi-cri", "--cdi-root", str(blocked / "cdi"))
    with start_plugin(*arguments) as plugin:
        plugin.says("CDI specs cannot be written")
        eventually(lambda: plugin.get("/ready")[0] == 503, "not ready")
        assert not list(node.dir.rglob("gpuplugin-nvidia*.sock"))


def _resources(node: Node) -> dict[str, Any]:
    shown = gpuplugin("sim", "node", "show", *node.at, "--json")
    resources: dict[str, Any] = json.loads(shown.stdout)["resources"]
    return resources


def _wait(node: Node, name: str, count: int) -> None:
    result = gpuplugin(
        *("sim", "node", "show", *node.at, "--wait", f"{name}={count}", "--timeout", "20")
    )
    assert result.returncode == 0, result.stderr
