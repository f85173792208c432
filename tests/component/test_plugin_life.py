"""Faults of a plugin on a node: kubelets come and go, refuse, or read nothing for a while."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import grpc
import pytest

from gpuplugin.core.pacing import Backoff
from gpuplugin.daemon import frontdoor
from gpuplugin.daemon.control import SOCKET_NAME
from gpuplugin.daemon.serving.sockets import new_socket_path
from gpuplugin.kubelet.proto import deviceplugin_pb2 as dp
from gpuplugin.kubelet.proto import pluginregistration_pb2 as pr
from gpuplugin.rpc.grpcio_engine import GrpcioEngine, GrpcioServer
from gpuplugin.rpc.services import SocketError
from hal import XidError
from sim.kubelet import Amount, Kubelet, Phase, simple_pod
from tests.component.conftest import one_way_unless_slow
from tests.component.fakedriver import FakeDriver, made_up_gpu, with_mig
from tests.component.running import RESOURCE, PluginProcess, allocate_request, raw_call
from tests.component.waiting import DEADLINE_S, becomes_a_file, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from gpuplugin.rpc.services import Service
    from tests.component.conftest import MakeHardware, StartPlugin
    from tests.component.running import Hardware

NEVER = {"--health-quiet-period": "10m"}
"""A GPU with a fault stays Unhealthy for the whole test."""

MANY_REPLICAS = "version: v1\nsharing: {timeSlicing: {resources: [{name: gpu, replicas: 300}]}}\n"


def wait_for(kubelet: Kubelet, capacity: int, allocatable: int) -> None:
    amount = Amount(capacity, allocatable)
    kubelet.wait_until(lambda node: node.amounts.get(RESOURCE) == amount, DEADLINE_S)


def renewals(plugin: PluginProcess, **labels: str) -> float:
    return plugin.metric("gpuplugin_socket_renewals_total", **labels)


# Kubelets that come and go


def test_many_quick_kubelet_restarts_leave_no_growing_gap(
    kubelet: Kubelet,
    hardware: Hardware,
    start_plugin: StartPlugin,
    registration: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each restart is answered like the first: a pause that doubled would pass five minutes."""
    monkeypatch.setattr("gpuplugin.daemon.serving.endpoint.MAX_PAUSE_S", 300.0)
    plugin = start_plugin(hardware.backend, registration)
    wait_for(kubelet, 80, 80)
    for _ in range(20):
        kubelet.restart()
        wait_for(kubelet, 80, 80)
    assert len(plugin.sockets()) == 1
    assert plugin.metric("gpuplugin_task_restarts_total") == 0


def removed(folder: Path) -> bool:
    """True once it could be removed: the plugin may be making a socket in it."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def lost_as_often(plugin: PluginProcess, times: int) -> bool:
    return renewals(plugin, reason="stream-lost") == times


def test_a_kubelet_that_crashes_in_a_loop_always_finds_a_socket(
    kubelet: Kubelet,
    hardware: Hardware,
    start_plugin: StartPlugin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pause before another socket grows, and the old socket is there meanwhile."""
    monkeypatch.setattr("gpuplugin.daemon.serving.endpoint.STREAM_GRACE_S", 0.1)
    plugin = start_plugin(hardware.backend, "watcher")
    wait_for(kubelet, 80, 80)
    for lives in range(1, 7):  # the pause is 3.2 s after the last
        kubelet.stop()
        eventually(partial(lost_as_often, plugin, lives))
        kubelet.start()
        eventually(lambda: "watches the device list" in part_text(plugin))
    (renewed,) = plugin.sockets()
    pause = threading.Event()
    absent_since_s = time.monotonic()  # its streams end first, and to stop may take a while
    kubelet.stop()
    while time.monotonic() - absent_since_s < 0.5:  # of a new plugin another socket would be there
        assert plugin.sockets() == (renewed,)
        pause.wait(0.01)
    kubelet.start()
    wait_for(kubelet, 80, 80)
    assert plugin.sockets() == (renewed,), "the kubelet came to the socket that was there"


def test_a_plugin_takes_over_at_once_from_one_that_leaves(
    kubelet: Kubelet,
    make_hardware: MakeHardware,
    start_plugin: StartPlugin,
    registration: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end of the old one cuts the new one's stream: the kubelet knows plugins by resource."""
    monkeypatch.setattr("gpuplugin.daemon.serving.endpoint.STREAM_GRACE_S", 10.0)
    old = start_plugin(make_hardware(8).backend, registration)
    wait_for(kubelet, 80, 80)
    new = start_plugin(make_hardware(8).backend, registration)
    eventually(lambda: new.ready and sees_company(new))
    old.stop()
    stopped_s = time.monotonic()
    kubelet.wait_until(
        lambda node: node.list_updates[RESOURCE] >= 3 and node.allocatable(RESOURCE) == 80,
        DEADLINE_S,
    )
    eventually(lambda: new.ready and renewals(new) == 1)
    assert time.monotonic() - stopped_s < 5, "it did not wait for its stream, which takes ten"
    wait_for(kubelet, 80, 80)


def test_a_dead_kubelet_socket_does_not_delay_the_next_kubelet(
    kubelet_dir: Path,
    hardware: Hardware,
    start_plugin: StartPlugin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kubelet that was killed leaves its socket: nobody answers there.

    The pause before the next Register call is a minute here, so only the kubelet can end it.
    """
    monkeypatch.setattr(
        "gpuplugin.daemon.serving.endpoint.Backoff",
        lambda first_s, cap_s: Backoff(60.0 if first_s == 0.5 else first_s, cap_s),
    )
    folder = kubelet_dir / "device-plugins"
    folder.mkdir()
    dead_socket(folder / "kubelet.sock")
    plugin = start_plugin(hardware.backend, "classic")
    refused = {"result": "refused", "mode": "classic"}
    eventually(lambda: plugin.metric("gpuplugin_registrations_total", **refused) == 1)
    assert "UNAVAILABLE" in part_text(plugin)
    with Kubelet(kubelet_dir) as kubelet:
        wait_for(kubelet, 80, 80)
        eventually(lambda: plugin.ready)


def dead_socket(path: Path) -> None:
    """A socket file that nobody listens on."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def test_the_kubelets_folders_may_be_deleted_and_made_anew(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin, registration: str
) -> None:
    """As by somebody who cleans a node up while the kubelet is stopped."""
    plugin = start_plugin(hardware.backend, registration)
    wait_for(kubelet, 80, 80)
    kubelet.stop()
    for name in ("device-plugins", "plugins_registry"):
        eventually(partial(removed, kubelet.dir / name))
    kubelet.start()
    wait_for(kubelet, 80, 80)
    eventually(lambda: plugin.ready)
    assert plugin.metric("gpuplugin_task_restarts_total") == 0
    assert kubelet.run_pod(simple_pod("after", {RESOURCE: 1})).phase is Phase.RUNNING


def test_a_folder_that_became_a_file_is_waited_for(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin
) -> None:
    plugin = start_plugin(hardware.backend, "watcher")
    wait_for(kubelet, 80, 80)
    eventually(lambda: becomes_a_file(plugin.folder))
    eventually(lambda: renewals(plugin, reason="no-socket") >= 1)
    assert plugin.metric("gpuplugin_task_restarts_total") == 0
    plugin.folder.unlink()
    wait_for(kubelet, 80, 80)


def test_it_stops_when_its_folder_became_a_file(
    hardware: Hardware, start_plugin: StartPlugin
) -> None:
    """What cannot be tidied up must not keep the daemon from ending."""
    plugin = start_plugin(hardware.backend, "none")
    eventually(lambda: plugin.sockets() and (plugin.folder / SOCKET_NAME).exists())
    eventually(lambda: becomes_a_file(plugin.folder))
    plugin.stop()
    assert plugin.failure is None


def test_it_stops_while_a_socket_that_cannot_be_made_is_tried(
    hardware: Hardware, start_plugin: StartPlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure comes after the order to stop, and must not take its place."""
    plugins: list[PluginProcess] = []
    trying = threading.Event()

    def told_to_stop() -> bool:
        return any(
            task.cancelling()
            for plugin in plugins
            for task in asyncio.all_tasks(plugin._loop)
            if "DevicePluginDoor._serve" in repr(task.get_coro())
        )

    class Engine(GrpcioEngine):
        def serve(self, socket_path: Path, services: Sequence[Service]) -> GrpcioServer:
            trying.set()
            eventually(told_to_stop)
            raise SocketError("no socket here")

    monkeypatch.setattr(frontdoor, "make_engine", lambda _name: Engine())
    plugins.append(start_plugin(hardware.backend))
    assert trying.wait(DEADLINE_S)
    plugins[0].stop()
    assert plugins[0].failure is None


# Refusals


@pytest.fixture
def accepting(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Whether the kubelet accepts resources: not before the event is set."""
    accepting = threading.Event()
    monkeypatch.setattr(
        "sim.kubelet.registration.is_extended_resource", lambda _: accepting.is_set()
    )
    monkeypatch.setattr("sim.kubelet.services.is_extended_resource", lambda _: accepting.is_set())
    return accepting


def test_a_plugin_that_was_refused_is_accepted_as_soon_as_the_kubelet_wants_it(
    accepting: threading.Event,
    kubelet: Kubelet,
    hardware: Hardware,
    start_plugin: StartPlugin,
    registration: str,
) -> None:
    plugin = start_plugin(hardware.backend, registration)
    refused = {"result": "refused", "mode": registration}
    eventually(lambda: plugin.metric("gpuplugin_registrations_total", **refused) >= 3)
    words = "invalid name" if registration == "watcher" else "is invalid"
    eventually(lambda: words in part_text(plugin))
    assert plugin.get("/ready").status == 503
    assert kubelet.view().amounts == {}
    accepting.set()
    wait_for(kubelet, 80, 80)
    eventually(lambda: plugin.ready)
    assert len(plugin.sockets()) == 1


def part_text(plugin: PluginProcess) -> str:
    """What /ready says of the kubelet."""
    part = plugin.get("/ready").parts.get(f"kubelet:{RESOURCE}", {})
    return str(part.get("text", ""))


def test_a_refusal_shows_while_the_next_socket_is_waited_for(
    accepting: threading.Event, kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin
) -> None:
    """That is most of the time, if the kubelet refuses for good."""
    plugin = start_plugin(hardware.backend, "watcher")
    eventually(lambda: "registration-refused: invalid name" in part_text(plugin))


def test_the_kubelets_back_off_of_a_path_is_left_behind(
    accepting: threading.Event,
    kubelet: Kubelet,
    hardware: Hardware,
    start_plugin: StartPlugin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each refusal doubles the kubelet's delay for that path; no path is offered twice."""
    offered: list[Path] = []

    def noted(folder: Path, resource: str) -> Path:
        offered.append(new_socket_path(folder, resource))
        return offered[-1]

    monkeypatch.setattr("gpuplugin.daemon.serving.endpoint.new_socket_path", noted)
    plugin = start_plugin(hardware.backend, "watcher")
    eventually(lambda: len(offered) >= 4)
    accepting.set()
    wait_for(kubelet, 80, 80)
    assert len(set(offered)) == len(offered)
    reasons = renewals(plugin, reason="registration-refused")
    assert reasons == renewals(plugin)
    assert reasons >= 3


def test_a_kubelet_that_asked_and_never_came_gets_another_socket(
    hardware: Hardware, start_plugin: StartPlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GetInfo that comes too late for the kubelet ends in a back-off of which nobody is told."""
    monkeypatch.setattr("gpuplugin.daemon.serving.endpoint.CONNECT_GRACE_S", 0.2)
    plugin = start_plugin(hardware.backend, "watcher")
    (first,) = eventually(plugin.sockets)
    info = pr.PluginInfo.FromString(
        raw_call(first, "/pluginregistration.Registration/GetInfo", b"")
    )
    assert info.name == RESOURCE
    eventually(lambda: renewals(plugin, reason="kubelet-did-not-connect") == 1)
    (second,) = eventually(plugin.sockets)
    assert second != first
    assert renewals(plugin) == 1, "a socket that nobody asked about stays"


def test_a_kubelet_that_accepts_and_never_comes_gets_another_socket(
    kubelet_dir: Path,
    hardware: Hardware,
    start_plugin: StartPlugin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same with classic registration, where the kubelet had to dial and could not."""
    monkeypatch.setattr("gpuplugin.daemon.serving.endpoint.CONNECT_GRACE_S", 0.2)
    monkeypatch.setattr("sim.kubelet.kubelet.Kubelet._register_classic", lambda *_: None)
    with Kubelet(kubelet_dir):
        plugin = start_plugin(hardware.backend, "classic")
        eventually(lambda: renewals(plugin, reason="kubelet-did-not-connect") >= 2)
        monkeypatch.undo()
    with Kubelet(kubelet_dir) as kubelet:
        wait_for(kubelet, 80, 80)


# Two plugins of one resource


def test_two_plugins_at_once_do_not_chase_each_other(
    kubelet: Kubelet, make_hardware: MakeHardware, start_plugin: StartPlugin, registration: str
) -> None:
    """A rollout with surge: both come to rest, and what is left of them has the whole node."""
    old = start_plugin(make_hardware(8).backend, registration)
    wait_for(kubelet, 80, 80)
    new = start_plugin(make_hardware(8).backend, registration)
    plugins = (old, new)
    eventually(lambda: all(plugin.ready for plugin in plugins))
    at_rest_since_s = time.monotonic()
    before = -1.0

    def at_rest() -> bool:
        """Nothing was renewed for longer than a lost stream is waited for."""
        nonlocal before, at_rest_since_s
        count = sum(renewals(plugin) for plugin in plugins)
        if count != before or not all(plugin.ready for plugin in plugins):
            before, at_rest_since_s = count, time.monotonic()
        return time.monotonic() - at_rest_since_s > 2.0

    eventually(at_rest)
    assert before <= 2, "they took the resource from each other"
    wait_for(kubelet, 80, 80)
    renewals_of_new = renewals(new)
    old.stop()
    takes_over(kubelet, new, renewals_of_new)
    assert renewals(new) <= renewals_of_new + 2
    assert len(new.sockets()) == 1
    assert kubelet.run_pod(simple_pod("after", {RESOURCE: 1})).phase is Phase.RUNNING


def takes_over(kubelet: Kubelet, plugin: PluginProcess, renewed: float = 0) -> None:
    """Wait until the node's devices are those of another socket of the plugin.

    The kubelet had none for a moment, which may be too short to be seen.
    """
    eventually(lambda: renewals(plugin) > renewed and plugin.ready)
    wait_for(kubelet, 80, 80)


def sees_company(plugin: PluginProcess) -> bool:
    return "another plugin" in part_text(plugin)


def test_the_plugin_that_stays_has_the_node_though_the_other_one_was_in_charge(
    kubelet: Kubelet, make_hardware: MakeHardware, start_plugin: StartPlugin, registration: str
) -> None:
    """The one that stays keeps a stream on which the kubelet no longer counts."""
    stays = start_plugin(make_hardware(8).backend, registration)
    wait_for(kubelet, 80, 80)
    leaves = start_plugin(make_hardware(8).backend, registration)
    eventually(lambda: leaves.ready and sees_company(stays))
    leaves.stop()
    takes_over(kubelet, stays)
    assert renewals(stays, reason="other-plugin-left") == renewals(stays) == 1
    assert kubelet.run_pod(simple_pod("after", {RESOURCE: 1})).phase is Phase.RUNNING


def test_the_plugin_that_stays_has_the_node_though_the_other_one_was_killed(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin, registration: str
) -> None:
    """A plugin that is killed leaves its socket, on which nobody listens."""
    stays = start_plugin(hardware.backend, registration)
    wait_for(kubelet, 80, 80)
    command = [sys.executable, "-m", "gpuplugin", "run", "--backend", "sim"]
    command += ["--kubelet-dir", str(kubelet.dir), "--registration", registration]
    command += ["--listen-address", "127.0.0.1:0", "--log-level", "error"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as leaves:
        try:
            eventually(lambda: kubelet.view().list_updates[RESOURCE] == 2 and sees_company(stays))
        finally:
            leaves.kill()
    takes_over(kubelet, stays)
    assert len(stays.sockets()) == 1, "the dead socket is gone"


# The list


@one_way_unless_slow
def test_a_list_that_outgrows_the_limit_is_not_sent(
    kubelet: Kubelet, kubelet_dir: Path, start_plugin: StartPlugin, registration: str
) -> None:
    """A GPU is plugged in and the list would pass 4 MiB: the kubelet would drop the plugin."""
    config = kubelet_dir / "config.yaml"
    config.write_text(MANY_REPLICAS.replace("300", "40000"))
    driver = FakeDriver(1)
    plugin = start_plugin(driver, registration, config_file=config)
    wait_for(kubelet, 40000, 40000)
    driver.listed = (made_up_gpu(0), made_up_gpu(1))
    wait_for(kubelet, 40000, 0)
    ready = plugin.get("/ready")
    assert ready.status == 503
    assert "replicas to at most " in str(ready.parts["inventory"]["text"])
    assert renewals(plugin) == 0


def test_nothing_is_sent_when_nothing_changed(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin, registration: str
) -> None:
    plugin = start_plugin(hardware.backend, registration)
    wait_for(kubelet, 80, 80)
    hardware.wait_for_probes(0, 10)
    for number in range(3):
        kubelet.run_pod(simple_pod(f"pod-{number}", {RESOURCE: 1}))
    hardware.wait_for_probes(0, 2)
    assert kubelet.view().list_updates == {RESOURCE: 1}
    assert plugin.metric("gpuplugin_list_updates_total") == 1


class Watcher:
    """A client of a plugin's list that reads only when it is told to."""

    def __init__(self, plugin_socket: Path) -> None:
        self._channel = grpc.insecure_channel(
            f"unix://{plugin_socket}",
            # No window that grows: what is not read stays with the plugin.
            options=(("grpc.http2.bdp_probe", 0),),
        )
        call: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(
            "/v1beta1.DevicePlugin/ListAndWatch"
        )
        self._stream = call(b"", timeout=DEADLINE_S * 2)

    def read(self) -> tuple[int, int]:
        """The next list: how many devices, and how many of them healthy."""
        devices = dp.ListAndWatchResponse.FromString(next(self._stream)).devices
        return len(devices), sum(device.health == "Healthy" for device in devices)

    def close(self) -> None:
        self._channel.close()


@contextmanager
def watching(plugin: PluginProcess) -> Iterator[Watcher]:
    (plugin_socket,) = eventually(plugin.sockets)
    watcher = Watcher(plugin_socket)
    try:
        yield watcher
    finally:
        watcher.close()


@pytest.fixture
def long_list(kubelet_dir: Path) -> Path:
    """A configuration with lists that no buffer on the way takes many of."""
    config = kubelet_dir / "config.yaml"
    config.write_text(MANY_REPLICAS)
    return config


GPUS = 30


def lose_one_after_the_other(driver: FakeDriver, kubelet: Kubelet) -> None:
    """Thirty lists of half a megabyte; each reaches the kubelet, and pods are served meanwhile."""
    for number, gpu in enumerate(driver.listed[:-1]):
        driver.report(XidError(gpu.uuid, 79))
        wait_for(kubelet, 300 * GPUS, 300 * (GPUS - number - 1))
    status = kubelet.run_pod(simple_pod("meanwhile", {RESOURCE: 1}))
    assert status.phase is Phase.RUNNING


@one_way_unless_slow
def test_a_client_that_reads_nothing_delays_nobody_and_then_gets_the_newest_list(
    kubelet: Kubelet, long_list: Path, start_plugin: StartPlugin, registration: str
) -> None:
    driver = FakeDriver(GPUS)
    plugin = start_plugin(driver, registration, NEVER, config_file=long_list)
    wait_for(kubelet, 300 * GPUS, 300 * GPUS)
    with watching(plugin) as slow:
        assert slow.read() == (300 * GPUS, 300 * GPUS)
        lose_one_after_the_other(driver, kubelet)
        assert plugin.metric("gpuplugin_list_updates_total") == GPUS
        lists = [slow.read()]
        while lists[-1] != (300 * GPUS, 300):
            lists.append(slow.read())
        assert len(lists) <= 4, "what it missed was kept for it"


def test_the_plugin_stops_in_time_while_a_client_reads_nothing(
    kubelet: Kubelet, long_list: Path, start_plugin: StartPlugin
) -> None:
    driver = FakeDriver(GPUS)
    plugin = start_plugin(driver, "watcher", NEVER, config_file=long_list)
    wait_for(kubelet, 300 * GPUS, 300 * GPUS)
    with watching(plugin) as slow:
        assert slow.read() == (300 * GPUS, 300 * GPUS)
        lose_one_after_the_other(driver, kubelet)
        plugin.stop()
    assert plugin.sockets() == ()
    eventually(lambda: not [one for one in threading.enumerate() if one.name.startswith("rpc")])


FROZEN_CLIENT = """
import os, signal, sys, grpc
channel = grpc.insecure_channel("unix://" + sys.argv[1])
stream = channel.unary_stream("/v1beta1.DevicePlugin/ListAndWatch")(b"")
next(stream)
print("watching", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


@one_way_unless_slow
def test_a_client_that_froze_and_died_leaves_nothing_behind(
    kubelet: Kubelet, long_list: Path, start_plugin: StartPlugin, registration: str
) -> None:
    driver = FakeDriver(GPUS)
    plugin = start_plugin(driver, registration, NEVER, config_file=long_list)
    wait_for(kubelet, 300 * GPUS, 300 * GPUS)
    (plugin_socket,) = plugin.sockets()
    streams = {"resource": RESOURCE}
    with subprocess.Popen(
        [sys.executable, "-c", FROZEN_CLIENT, str(plugin_socket)], stdout=subprocess.PIPE
    ) as client:
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == b"watching\n"
            eventually(lambda: plugin.metric("gpuplugin_open_streams", **streams) == 2)
            lose_one_after_the_other(driver, kubelet)
        finally:
            client.send_signal(signal.SIGKILL)
    eventually(lambda: plugin.metric("gpuplugin_open_streams", **streams) == 1)
    answer = plugin.call("Allocate", allocate_request((f"{driver.listed[-1].uuid}::7",)))
    assert driver.listed[-1].uuid.encode() in answer
    assert renewals(plugin) == 0


def test_a_resource_that_is_left_leaves_no_series(
    kubelet: Kubelet, kubelet_dir: Path, start_plugin: StartPlugin, registration: str
) -> None:
    config = kubelet_dir / "config.yaml"
    config.write_text("version: v1\nflags: {migStrategy: mixed}\n")
    driver = FakeDriver(2)
    driver.listed = (driver.listed[0], with_mig(driver.listed[1], "1g.10gb"))
    plugin = start_plugin(driver, registration, config_file=config)
    left = "nvidia.com/mig-1g.10gb"
    kubelet.wait_until(lambda node: node.allocatable(left) == 1, DEADLINE_S)
    eventually(lambda: plugin.metric("gpuplugin_open_streams", resource=left) == 1)
    driver.listed = (driver.listed[0], with_mig(driver.listed[1], "2g.20gb"))
    kubelet.wait_until(lambda node: node.allocatable("nvidia.com/mig-2g.20gb") == 1, DEADLINE_S)
    eventually(lambda: len(plugin.sockets()) == 2)
    eventually(lambda: left not in plugin.get("/metrics").body)
    kubelet.wait_until(lambda node: node.amounts[left] == Amount(0, 0), DEADLINE_S)
    assert left not in plugin.get("/metrics").body
