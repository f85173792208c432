"""The plugin as a process serves the kubelet stand-in as a process, both ways of registration."""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.e2e.conftest import Node, Plugin, eventually, gpuplugin
from tests.e2e.served import StartPlugin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from _pytest.mark.structures import ParameterSet

    from tests.e2e.conftest import Process

QUICK_RECOVERY = ("--health-quiet-period", "300ms", "--health-probe-interval", "100ms")
GPUS = 8


@pytest.fixture
def kubelet(node: Node) -> Iterator[Process]:
    with node.start_kubelet() as process:
        yield process


class Way(NamedTuple):
    """Which backend the plugin has, and how it registers."""

    backend: str
    registration: str


_SLOW = (Way("sim", "watcher"), Way("sim", "classic"), Way("nvml", "classic"))


def _ways(*ways: Way) -> list[ParameterSet]:
    """The usual way in `make test`, the others where it is slow."""
    return [
        pytest.param(way, id="-".join(way), marks=[pytest.mark.slow] if way in _SLOW else [])
        for way in ways
    ]


WATCHER = (Way("sim", "watcher"), Way("nvml", "watcher"))
CLASSIC = (Way("sim", "classic"), Way("nvml", "classic"))


@pytest.fixture(params=_ways(*WATCHER, *CLASSIC))
def start_plugin(node: Node, request: pytest.FixtureRequest) -> Iterator[StartPlugin]:
    """Starts the plugin in each way."""
    way: Way = request.param
    with ExitStack() as stack:
        yield StartPlugin(way.backend, node, stack, "--registration", way.registration)


@pytest.fixture
def plugin(start_plugin: StartPlugin, kubelet: Process) -> Iterator[Plugin]:
    with start_plugin(*QUICK_RECOVERY) as process:
        yield process


def test_eighty_devices_ten_pods_and_a_refusal(node: Node, plugin: Plugin) -> None:
    amounts = node.wait_allocatable(80)
    assert amounts["capacity"] == 80
    assert amounts["list_updates"] == 1
    pods = [node.create(f"pod-{number}") for number in range(10)]
    assert [pod["phase"] for pod in pods] == ["Running"] * 10
    grants = [pod["grants"][0] for pod in pods]
    for grant in grants:
        (device_id,) = grant["device_ids"]
        uuid, _, replica = device_id.partition("::")
        assert uuid.startswith("GPU-")
        assert 0 <= int(replica) < 10
        assert grant["envs"] == {"NVIDIA_VISIBLE_DEVICES": uuid}
    assert len({grant["device_ids"][0] for grant in grants}) == 10
    per_gpu = Counter(grant["envs"]["NVIDIA_VISIBLE_DEVICES"] for grant in grants)
    assert sorted(per_gpu.values()) == [1] * 6 + [2] * 2

    greedy = node.create("greedy", 2)
    assert (greedy["phase"], greedy["reason"]) == ("Failed", "UnexpectedAdmissionError")
    assert "maximum request size for shared resources is 1; found 2" in greedy["message"]


def test_a_lost_gpu_takes_its_own_replicas_along_and_no_others(node: Node, plugin: Plugin) -> None:
    before = node.wait_allocatable(80)["list_updates"]

    assert "Xid 31" in node.inject("--gpu", "3", "--xid", "31")
    eventually(
        lambda: 'gpu="3"' in "".join(_samples(plugin, "gpuplugin_xid_events_total", 'xid="31"')),
        "Xid 31 is counted",
    )
    assert node.wait_allocatable(80)["list_updates"] == before

    node.inject("--gpu", "3", "--xid", "79")
    amounts = node.wait_allocatable(70)
    assert amounts["capacity"] == 80
    assert amounts["list_updates"] == before + 1
    assert {one.partition("::")[2] for one in amounts["unhealthy"]} == set("0123456789")
    assert len({one.partition("::")[0] for one in amounts["unhealthy"]}) == 1
    eventually(lambda: plugin.get("/ready")[0] == 200, "a lost GPU leaves the plugin ready")

    node.inject("--gpu", "3", "--recover")
    assert node.wait_allocatable(80)["list_updates"] == before + 2


def test_a_restarted_kubelet_has_the_node_back_without_a_plugin_restart(
    node: Node, plugin: Plugin
) -> None:
    node.wait_allocatable(80)
    assert node.create("survivor")["phase"] == "Running"
    assert gpuplugin("sim", "node", "restart", *node.at).returncode == 0
    node.wait_allocatable(80)
    assert plugin.running
    listed = gpuplugin("sim", "pod", "list", *node.at).stdout
    assert "survivor  Running" in listed


@pytest.mark.parametrize("start_plugin", _ways(*CLASSIC), indirect=True)
def test_a_killed_kubelet_process_comes_back(node: Node, start_plugin: StartPlugin) -> None:
    with start_plugin() as plugin:
        with node.start_kubelet() as kubelet:
            node.wait_allocatable(80)
            kubelet.signal(signal.SIGKILL)
            assert kubelet.exit_status() == -signal.SIGKILL
        with node.start_kubelet():
            node.wait_allocatable(80)
        assert plugin.running


def test_a_killed_plugin_is_replaced_by_a_new_one(
    node: Node, kubelet: Process, start_plugin: StartPlugin
) -> None:
    with start_plugin() as first:
        node.wait_allocatable(80)
        assert node.create("survivor")["phase"] == "Running"
        first.signal(signal.SIGKILL)
        first.exit_status()
    assert node.wait_allocatable(0)["capacity"] == 80
    with start_plugin() as second:
        node.wait_allocatable(80)
        assert "removed the old socket" in second.output


def test_sigterm_drains_and_leaves_no_socket(
    node: Node, kubelet: Process, start_plugin: StartPlugin
) -> None:
    start_plugin.serve()
    before = _sockets(node)
    with start_plugin() as plugin:
        node.wait_allocatable(80)
        assert _sockets(node) > before
        assert plugin.stop() == 0
    node.wait_allocatable(0)
    assert _sockets(node) == before


def _sockets(node: Node) -> set[Path]:
    return {path for path in node.dir.rglob("gpuplugin*.sock") if path.is_socket()}


def _samples(plugin: Plugin, name: str, label: str) -> list[str]:
    status, text = plugin.get("/metrics")
    assert status == 200
    return [
        line
        for line in text.splitlines()
        if line.startswith(name) and label in line and not line.endswith(" 0.0")
    ]


def test_what_serves_is_loaded_before_it_serves(node: Node, kubelet: Process) -> None:
    """Two threads that import the same modules at once may each get half of one."""
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    flags = ("--backend", "sim", "--kubelet-dir", str(node.dir), "--metrics-interval", "100ms")
    strategy = ("--device-list-strategy", "envvar,cdi-annotations", "--cdi-root", str(node.dir))
    with Plugin(*flags, *strategy, env=environment) as plugin:
        node.wait_allocatable(80)
        served = len(plugin.lines)
        for path in ("/ready", "/metrics", "/", "/health", "/none"):
            plugin.get(path)
        assert node.create("pod")["phase"] == "Running"
        node.inject("--gpu", "3", "--xid", "79")
        node.wait_allocatable(70)
        eventually(
            lambda: "gpuplugin_gpu_power_watts" in plugin.get("/metrics")[1], "GPUs are read"
        )
        imported = [line for line in plugin.lines if line.startswith("import time:")]
        late = [line for line in plugin.lines[served:] if line.startswith("import time:")]
    assert len(imported) > 100
    assert late == []
