"""Restarts of the kubelet and of the plugin, and sockets that vanish: the node ends at eighty."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
import pytest

from gpuplugin.daemon import frontdoor
from gpuplugin.rpc.grpcio_engine import GrpcioEngine, GrpcioServer
from sim.kubelet import Amount, Kubelet, Phase, simple_pod
from tests.component.running import RESOURCE, run_as_loaded, settings_for
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from gpuplugin.rpc.services import Service
    from tests.component.conftest import MakeHardware, StartPlugin
    from tests.component.running import Hardware


def wait_for_eighty(kubelet: Kubelet) -> None:
    kubelet.wait_until(lambda node: node.amounts.get(RESOURCE) == Amount(80, 80), DEADLINE_S)


def run_pods(kubelet: Kubelet, count: int) -> dict[str, tuple[str, ...]]:
    """The devices of new pods, by pod."""
    held = {}
    for number in range(count):
        status = kubelet.run_pod(simple_pod(f"pod-{number}", {RESOURCE: 1}))
        assert status.phase is Phase.RUNNING
        held[f"default/pod-{number}"] = status.grants[0].device_ids
    return held


def held_devices(kubelet: Kubelet) -> dict[str, tuple[str, ...]]:
    """The devices that running pods hold, as the device manager has it."""
    return {
        pod.key: tuple(one for holding in held for one in holding.device_ids)
        for pod, held, _ in kubelet._held()
    }


def test_a_kubelet_restart_needs_no_restart_of_the_plugin(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin, registration: str
) -> None:
    plugin = start_plugin(hardware.backend, registration)
    wait_for_eighty(kubelet)
    held = run_pods(kubelet, 12)
    for _ in range(2):
        kubelet.restart()
        wait_for_eighty(kubelet)
        assert held_devices(kubelet) == held
    status = kubelet.run_pod(simple_pod("late", {RESOURCE: 1}))
    taken = {one for devices in held.values() for one in devices}
    assert status.phase is Phase.RUNNING
    assert status.grants[0].device_ids[0] not in taken
    assert plugin.metric("gpuplugin_task_restarts_total") == 0


def test_a_watched_socket_outlives_a_quick_kubelet_restart(
    kubelet: Kubelet,
    hardware: Hardware,
    start_plugin: StartPlugin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kubelet finds the socket again: the plugin has nothing to do."""
    monkeypatch.setattr("gpuplugin.daemon.serving.endpoint.STREAM_GRACE_S", DEADLINE_S)
    plugin = start_plugin(hardware.backend, "watcher")
    wait_for_eighty(kubelet)
    before = plugin.sockets()
    kubelet.restart()
    wait_for_eighty(kubelet)
    assert plugin.sockets() == before
    assert plugin.metric("gpuplugin_socket_renewals_total") == 0


def test_a_long_absence_of_the_kubelet_is_survived(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin, registration: str
) -> None:
    """Longer than the plugin keeps a socket without a stream."""
    plugin = start_plugin(hardware.backend, registration)
    wait_for_eighty(kubelet)
    first = plugin.sockets()
    kubelet.stop()
    eventually(lambda: plugin.sockets() and plugin.sockets() != first)
    eventually(lambda: not plugin.ready)
    kubelet.start()
    wait_for_eighty(kubelet)
    eventually(lambda: plugin.ready)
    assert plugin.metric("gpuplugin_socket_renewals_total", reason="stream-lost") >= 1


def test_the_kubelet_may_come_after_the_plugin(
    kubelet_dir: Path, hardware: Hardware, start_plugin: StartPlugin, registration: str
) -> None:
    plugin = start_plugin(hardware.backend, registration)
    eventually(plugin.sockets)
    part = plugin.get("/ready").parts[f"kubelet:{RESOURCE}"]
    assert part["ok"] is False
    assert "waiting for" in str(part["text"])
    with Kubelet(kubelet_dir) as kubelet:
        wait_for_eighty(kubelet)
        eventually(lambda: plugin.ready)


def test_a_plugin_that_stops_takes_its_socket_along(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin, registration: str
) -> None:
    plugin = start_plugin(hardware.backend, registration)
    wait_for_eighty(kubelet)
    assert plugin.sockets()
    plugin.stop()
    assert plugin.sockets() == ()
    assert plugin.failure is None
    node = kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 0, DEADLINE_S)
    assert node.capacity(RESOURCE) == 80


def test_a_plugin_restart_leaves_pods_alone(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin, registration: str
) -> None:
    plugin = start_plugin(hardware.backend, registration)
    wait_for_eighty(kubelet)
    held = run_pods(kubelet, 3)
    pods = kubelet.view().pods
    plugin.stop()
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 0, DEADLINE_S)
    assert kubelet.view().pods == pods
    start_plugin(hardware.backend, registration)
    wait_for_eighty(kubelet)
    assert kubelet.view().pods == pods
    assert held_devices(kubelet) == held


@contextmanager
def plugin_program(kubelet_dir: Path, registration: str) -> Iterator[subprocess.Popen[bytes]]:
    """The daemon as a program of its own."""
    command = [sys.executable, "-m", "gpuplugin", "run", "--backend", "sim"]
    command += ["--kubelet-dir", str(kubelet_dir), "--registration", registration]
    command += ["--listen-address", "127.0.0.1:0", "--log-level", "error"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as program:
        try:
            yield program
        finally:
            program.kill()
            program.wait(DEADLINE_S)


def test_the_sockets_of_a_killed_plugin_do_no_harm(
    kubelet: Kubelet,
    kubelet_dir: Path,
    hardware: Hardware,
    start_plugin: StartPlugin,
    registration: str,
) -> None:
    with plugin_program(kubelet_dir, registration):
        wait_for_eighty(kubelet)
        held = run_pods(kubelet, 2)
    node = kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 0, DEADLINE_S)
    assert node.capacity(RESOURCE) == 80
    pods = node.pods
    plugin = start_plugin(hardware.backend, registration)
    wait_for_eighty(kubelet)
    assert len(plugin.sockets()) == 1, "the dead socket is gone"
    assert kubelet.view().pods == pods
    assert held_devices(kubelet) == held


def test_sigterm_drains_and_removes_the_sockets(
    kubelet: Kubelet, kubelet_dir: Path, registration: str
) -> None:
    with plugin_program(kubelet_dir, registration) as program:
        wait_for_eighty(kubelet)
        program.terminate()
        assert program.wait(DEADLINE_S) == 0
    assert [path for path in kubelet_dir.rglob("gpuplugin-*.sock") if path.is_socket()] == []


def test_run_ends_with_zero_on_a_signal(
    kubelet: Kubelet, kubelet_dir: Path, hardware: Hardware
) -> None:
    """The same in process: the signal handlers need the main thread, where tests run."""
    settings = settings_for(kubelet_dir)
    failures: list[BaseException] = []

    def terminate() -> None:
        try:
            wait_for_eighty(kubelet)
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        thread.start()
        assert asyncio.run(run_as_loaded(settings, hardware.backend)) == 0
        thread.join(DEADLINE_S)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert failures == []
    assert list(kubelet_dir.rglob("gpuplugin-*.sock")) == []


def test_old_sockets_are_removed_and_other_files_are_not(
    kubelet_dir: Path, hardware: Hardware, start_plugin: StartPlugin, registration: str
) -> None:
    folders = (kubelet_dir / "plugins_registry" / "gpuplugin", kubelet_dir / "device-plugins")
    kept = []
    dead = []
    for folder in folders:
        folder.mkdir(parents=True)
        dead.append(dead_socket(folder / "gpuplugin-nvidia.com-gpu-0badcafe.sock"))
        kept.append(dead_socket(folder / "nvidia-gpu.sock"))
        kept.append(folder / "gpuplugin-notes.txt")
        kept[-1].touch()
    plugin = start_plugin(hardware.backend, registration)
    eventually(lambda: plugin.get("/ready").parts.get(f"kubelet:{RESOURCE}"))
    assert [path for path in dead if path.exists()] == []
    assert [path for path in kept if not path.exists()] == []


def dead_socket(path: Path) -> Path:
    """A socket file that nobody listens on."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    return path


def test_a_deleted_socket_is_renewed_under_another_name(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin, registration: str
) -> None:
    plugin = start_plugin(hardware.backend, registration)
    wait_for_eighty(kubelet)
    (path,) = plugin.sockets()
    path.unlink()
    (renewed,) = eventually(plugin.sockets)
    assert renewed != path
    eventually(
        lambda: plugin.metric("gpuplugin_socket_renewals_total", reason="socket-removed") == 1
    )
    eventually(lambda: plugin.ready)
    wait_for_eighty(kubelet)
    status = kubelet.run_pod(simple_pod("after", {RESOURCE: 1}))
    assert status.phase is Phase.RUNNING


def test_a_socket_that_is_deleted_before_it_was_looked_at_is_renewed(
    kubelet: Kubelet,
    hardware: Hardware,
    start_plugin: StartPlugin,
    monkeypatch: pytest.MonkeyPatch,
    registration: str,
) -> None:
    """A kubelet that starts at that moment removes every socket in its folder."""
    served: list[Path] = []

    class Engine(GrpcioEngine):
        def serve(self, socket_path: Path, services: Sequence[Service]) -> GrpcioServer:
            server = super().serve(socket_path, services)
            if not served:
                socket_path.unlink()
            served.append(socket_path)
            return server

    monkeypatch.setattr(frontdoor, "make_engine", lambda _name: Engine())
    start_plugin(hardware.backend, registration)
    wait_for_eighty(kubelet)
    assert len(served) == 2


def test_a_deleted_folder_is_made_again(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin
) -> None:
    plugin = start_plugin(hardware.backend, "watcher")
    wait_for_eighty(kubelet)
    shutil.rmtree(plugin.folder)
    eventually(plugin.sockets)
    eventually(
        lambda: plugin.metric("gpuplugin_socket_renewals_total", reason="socket-removed") == 1
    )
    eventually(lambda: plugin.ready)
    wait_for_eighty(kubelet)
    assert kubelet.run_pod(simple_pod("after", {RESOURCE: 1})).phase is Phase.RUNNING


def test_two_plugins_at_once_end_at_eighty_when_the_old_one_stops(
    kubelet: Kubelet, make_hardware: MakeHardware, start_plugin: StartPlugin, registration: str
) -> None:
    """As in a rollout with surge: the end of the old stream disconnects the new plugin."""
    old = start_plugin(make_hardware(8).backend, registration)
    wait_for_eighty(kubelet)
    new = start_plugin(make_hardware(8).backend, registration)
    eventually(lambda: new.metric("gpuplugin_open_streams") == 1)
    old.stop()
    eventually(lambda: new.ready)

    def settled() -> bool:
        return len(new.sockets()) == 1 and new.ready and kubelet_is_at_eighty()

    def kubelet_is_at_eighty() -> bool:
        return kubelet.view().amounts.get(RESOURCE) == Amount(80, 80)

    eventually(settled)
    assert kubelet.run_pod(simple_pod("after", {RESOURCE: 1})).phase is Phase.RUNNING


def test_a_second_plugin_that_comes_and_goes_between_two_looks_leaves_eighty(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin, registration: str
) -> None:
    """The kubelet knew it instead of ours, and has no plugin of the resource from its end on."""
    plugin = start_plugin(hardware.backend, registration)
    wait_for_eighty(kubelet)
    (ours,) = plugin.sockets()
    other = ours.with_name(f"{ours.name[: -len('00000000.sock')]}00000000.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(other))
    other.unlink()
    eventually(lambda: ours not in plugin.sockets() and plugin.sockets())
    wait_for_eighty(kubelet)
    assert plugin.metric("gpuplugin_socket_renewals_total", reason="other-plugin-left") == 1


@pytest.mark.parametrize("ways", [("watcher", "classic"), ("classic", "watcher")])
def test_the_way_of_registration_may_change_with_a_restart(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin, ways: tuple[str, str]
) -> None:
    first = start_plugin(hardware.backend, ways[0])
    wait_for_eighty(kubelet)
    first.stop()
    start_plugin(hardware.backend, ways[1])
    wait_for_eighty(kubelet)


def test_streams_are_noticed_at_once(
    kubelet: Kubelet,
    hardware: Hardware,
    start_plugin: StartPlugin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever asks right after the kubelet has come or gone is told so."""
    monkeypatch.setattr("gpuplugin.daemon.serving.endpoint.POLL_S", 3600.0)
    plugin = start_plugin(hardware.backend, "watcher")
    wait_for_eighty(kubelet)
    eventually(lambda: plugin.ready)
    kubelet.stop()
    eventually(lambda: not plugin.ready)
    kubelet.start()
    wait_for_eighty(kubelet)
    eventually(lambda: plugin.ready)


def test_contact_that_begins_and_ends_between_two_looks_is_remembered(
    kubelet_dir: Path,
    hardware: Hardware,
    start_plugin: StartPlugin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node that was watched a moment ago must not be told that it never was."""
    monkeypatch.setattr("gpuplugin.daemon.serving.endpoint.POLL_S", 0.5)
    plugin = start_plugin(hardware.backend)
    (socket_path,) = eventually(plugin.sockets)
    with grpc.insecure_channel(f"unix://{socket_path}") as channel:
        watch: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
            "/v1beta1.DevicePlugin/ListAndWatch"
        )
        lists = watch(b"", wait_for_ready=True)
        next(lists)
        lists.cancel()

    def part() -> dict[str, object]:
        return plugin.get("/ready").parts[f"kubelet:{RESOURCE}"]

    eventually(lambda: "stream has ended" in str(part()["text"]))
    assert part()["ok"] is False
    assert part()["ok_ago_s"] is not None
