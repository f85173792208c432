"""The daemon's local socket: who may ask, what is told, what is cleared, and how long it lives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from gpuplugin.daemon.control import SOCKET_NAME
from gpuplugin.daemon.serving.sockets import identity
from gpuplugin.linesocket import ControlError, ask
from hal import XidError
from sim.kubelet import Amount
from tests.component.fakedriver import FakeDriver
from tests.component.running import RESOURCE
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sim.kubelet import Kubelet
    from tests.component.conftest import MakeHardware, StartPlugin
    from tests.component.running import Hardware, PluginProcess

NOBODY = 65534


@pytest.fixture
def plugin(kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin) -> PluginProcess:
    """A plugin whose eighty devices the kubelet knows."""
    plugin = start_plugin(hardware.backend)
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 80, DEADLINE_S)
    hardware.wait_for_probes(0, 1)
    return plugin


def control(plugin: PluginProcess) -> Path:
    """The daemon's socket, once it is there and listens."""
    path = plugin.folder / SOCKET_NAME
    eventually(lambda: listens(path) and path.stat().st_mode & 0o777 == 0o600)
    return path


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def command(plugin: PluginProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`gpuplugin health ...` as a process."""
    folder = str(plugin.settings.daemon.kubelet_dir)
    return subprocess.run(
        [sys.executable, "-m", "gpuplugin", "health", *arguments, "--kubelet-dir", folder],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def units(plugin: PluginProcess) -> dict[str, Mapping[str, object]]:
    """What the daemon tells of each GPU, by index."""
    answer = ask(control(plugin), {"report": True}, DEADLINE_S)
    listed = answer["units"]
    assert isinstance(listed, list)
    return {unit["index"]: unit for unit in listed}


def test_a_person_clears_a_fault_without_waiting_for_the_quiet_period(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin
) -> None:
    plugin = start_plugin(hardware.backend, flags={"--health-quiet-period": "10m"})
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 80, DEADLINE_S)
    hardware.xid(3, 142)
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 70, DEADLINE_S)
    done = command(plugin, "clear", hardware.uuids[3])
    assert (done.returncode, done.stdout) == (0, f"{hardware.uuids[3]}: cleared\n"), done.stderr
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 80, DEADLINE_S)
    cleared = {"uuid": hardware.uuids[3], "state": "Healthy", "cause": "cleared"}
    eventually(lambda: plugin.metric("gpuplugin_gpu_health_transitions_total", **cleared) == 1)


def test_a_person_clears_what_only_a_reset_would_end(
    kubelet: Kubelet, start_plugin: StartPlugin
) -> None:
    """A reset that left no trace, on a driver that cannot say whether one is due."""
    driver = FakeDriver(2)
    plugin = start_plugin(driver)
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 20, DEADLINE_S)
    driver.report(XidError(driver.listed[1].uuid, 95))
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 10, DEADLINE_S)
    listings = driver.listings
    eventually(lambda: driver.listings > listings + 8)  # more than twice the quiet period
    assert kubelet.view().amounts[RESOURCE] == Amount(20, 10)
    assert units(plugin)["1"]["needs_reset"]
    done = command(plugin, "clear", "1")
    assert (done.returncode, done.stdout) == (0, f"{driver.listed[1].uuid}: cleared\n")
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 20, DEADLINE_S)


def test_what_the_hardware_still_reports_is_not_cleared(
    kubelet: Kubelet, hardware: Hardware, plugin: PluginProcess
) -> None:
    hardware.lose(2)
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 70, DEADLINE_S)
    refused = command(plugin, "clear", "2")
    assert refused.returncode == 1
    assert hardware.uuids[2] in refused.stderr
    assert "still faulty" in refused.stderr
    assert kubelet.view().amounts[RESOURCE] == Amount(80, 70)
    hardware.recover(2)
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 80, DEADLINE_S)


def test_all_clears_what_can_be_and_tells_the_rest(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin
) -> None:
    plugin = start_plugin(hardware.backend, flags={"--health-quiet-period": "10m"})
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 80, DEADLINE_S)
    hardware.xid(1, 142)
    hardware.lose(2)
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 60, DEADLINE_S)
    done = command(plugin, "clear", "all")
    assert done.returncode == 1, "GPU 2 stays"
    assert done.stdout == f"{hardware.uuids[1]}: cleared\n"
    assert f"2 ({hardware.uuids[2]}) is still faulty" in done.stderr
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 70, DEADLINE_S)


def test_the_states_are_shown(hardware: Hardware, plugin: PluginProcess) -> None:
    everything_well = command(plugin)
    assert everything_well.returncode == 0
    assert len(everything_well.stdout.splitlines()) == 9
    hardware.xid(5, 95)
    eventually(lambda: units(plugin)["5"]["state"] == "Unhealthy")
    sick = command(plugin)
    assert sick.returncode == 1
    (line,) = (line for line in sick.stdout.splitlines() if hardware.uuids[5] in line)
    assert line.startswith("5 ")
    assert "Unhealthy" in line
    assert "Xid 95: Uncontained memory error (action: reset-gpu; waits for a reset)" in line
    (unit,) = (
        unit
        for unit in json.loads(command(plugin, "--json").stdout)["units"]
        if unit["uuid"] == hardware.uuids[5]
    )
    assert (unit["xid"], unit["needs_reset"]) == (95, True)


def test_a_gpu_that_is_left_out_is_shown_and_does_not_count(
    hardware: Hardware, start_plugin: StartPlugin
) -> None:
    plugin = start_plugin(hardware.backend, "none", {"--exclude-gpus": "5"})
    eventually(lambda: plugin.ready)
    hardware.xid(5, 95)
    eventually(lambda: units(plugin)["5"]["state"] == "Unhealthy")
    shown = command(plugin)
    assert shown.returncode == 0
    (line,) = (line for line in shown.stdout.splitlines() if hardware.uuids[5] in line)
    assert "Unhealthy, left out" in line


def test_an_unknown_gpu_is_told_with_those_that_are_known(plugin: PluginProcess) -> None:
    refused = command(plugin, "clear", "GPU-nobody")
    assert refused.returncode == 1
    assert "'GPU-nobody'" in refused.stderr
    assert "0, 1, 2, 3, 4, 5, 6, 7" in refused.stderr


def test_nothing_to_clear(plugin: PluginProcess) -> None:
    done = command(plugin, "clear", "all")
    assert (done.returncode, done.stdout) == (0, "all are healthy: nothing to clear\n")


def test_without_a_plugin_the_command_says_where_it_looked(kubelet_dir: Path) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "gpuplugin", "health", "--kubelet-dir", str(kubelet_dir)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 1
    assert str(kubelet_dir / "plugins_registry" / "gpuplugin") in refused.stderr
    assert "kubectl exec" in refused.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_refused_even_where_the_files_mode_lets_it_in(
    hardware: Hardware, start_plugin: StartPlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A mode that was changed is put right as soon as inotify tells of it.
    monkeypatch.setattr("gpuplugin.daemon.files._WATCHED", 0x400)
    path = control(start_plugin(hardware.backend, "watcher"))
    for folder in (path.parent, *path.parent.parents[:2]):
        folder.chmod(0o755)
    path.chmod(0o666)
    script = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534);"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        's.sendall(b\'{"clear": "all"}\\n\'); print(s.makefile().readline())'
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout)["error"].startswith(f"user {NOBODY} may not")


@pytest.mark.parametrize(
    "line", [b"\n", b"nonsense\n", b"[]\n", b"{", b"", b"\xff\xfe\n", b"x" * 200_000, b"null\n"]
)
def test_nonsense_harms_nobody(plugin: PluginProcess, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(DEADLINE_S)
        connection.connect(str(control(plugin)))
        try:
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.makefile("rb").readline()
        except OSError:
            answer = b""  # the daemon hung up in the middle of it
    assert answer == b"" or "error" in json.loads(answer)
    assert len(units(plugin)) == 8
    assert plugin.metric("gpuplugin_task_restarts_total") == 0


def test_a_silent_connection_holds_nobody_up(plugin: PluginProcess) -> None:
    path = control(plugin)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path))
        assert len(units(plugin)) == 8


@pytest.mark.usefixtures("quick_control")
def test_a_socket_that_is_removed_is_made_again(plugin: PluginProcess) -> None:
    """As a kubelet does at its start with what lies in device-plugins."""
    control(plugin).unlink()
    assert len(units(plugin)) == 8


@pytest.mark.parametrize("way", ["watcher", "classic"])
def test_the_socket_goes_with_the_plugin_and_a_stale_one_is_in_nobodys_way(
    hardware: Hardware, start_plugin: StartPlugin, way: str, kubelet: Kubelet
) -> None:
    first = start_plugin(hardware.backend, way)
    path = control(first)
    first.stop()
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(ControlError, match="Connection refused"):
        ask(path, {"report": True}, DEADLINE_S)
    second = start_plugin(hardware.backend, way)
    assert len(eventually(lambda: reached(second))) == 8


def reached(plugin: PluginProcess) -> dict[str, Mapping[str, object]] | None:
    try:
        return units(plugin)
    except ControlError:
        return None


@pytest.fixture
def quick_control(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon looks at its socket more often than in earnest."""
    monkeypatch.setattr("gpuplugin.daemon.control.POLL_S", 0.05)


def test_two_plugins_in_one_folder_leave_each_other_the_control_socket(
    kubelet: Kubelet,
    plugin: PluginProcess,
    make_hardware: MakeHardware,
    start_plugin: StartPlugin,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("gpuplugin.daemon.control.POLL_S", 0.05)
    path = control(plugin)
    first = identity(path)
    second = start_plugin(make_hardware(8).backend)

    def complaints() -> int:
        return sum("another plugin serves" in one.getMessage() for one in caplog.records)

    eventually(complaints)
    eventually(lambda: second.ready)
    assert identity(path) == first
    second.stop()
    assert identity(path) == first, "the end of the second one took the first one's along"
    assert ask(path, {"report": True}, DEADLINE_S)["units"]
    assert complaints() == 1

    third = start_plugin(make_hardware(8).backend)
    eventually(lambda: complaints() == 2)
    plugin.stop()
    eventually(lambda: listens(path) and identity(path) != first)
    assert units(third)


def test_what_is_nested_too_deeply_is_answered(plugin: PluginProcess) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE_S)
        client.connect(str(control(plugin)))
        client.sendall(b"[" * 60_000 + b"\n")
        assert b"not JSON" in client.makefile("rb").readline()
