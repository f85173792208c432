"""Faults of GPUs: what the kubelet is told, how often, and what is counted."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Self

import pytest

from gpuplugin.daemon.hardware import monitor
from hal import DriverUnavailable
from sim.kubelet import Amount, Phase, simple_pod
from tests.component.fakedriver import FakeDriver
from tests.component.running import RESOURCE, allocate_request
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from sim.kubelet import Kubelet
    from tests.component.conftest import StartPlugin
    from tests.component.running import Hardware, PluginProcess

APPLICATION_XIDS = (13, 31, 43, 45)


@pytest.fixture
def plugin(kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin) -> PluginProcess:
    """A plugin whose eighty devices the kubelet knows, and whose GPUs were probed once."""
    plugin = start_plugin(hardware.backend)
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 80, DEADLINE_S)
    hardware.wait_for_probes(0, 1)
    return plugin


def updates(kubelet: Kubelet) -> int:
    """Device lists that the kubelet got."""
    return kubelet.view().list_updates[RESOURCE]


def wait_allocatable(kubelet: Kubelet, count: int) -> None:
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == count, DEADLINE_S)


def test_a_fault_takes_all_replicas_of_its_gpu_in_one_update(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin, registration: str
) -> None:
    start_plugin(hardware.backend, registration)
    wait_allocatable(kubelet, 80)
    hardware.wait_for_probes(0, 1)
    before = updates(kubelet)
    hardware.xid(3, 79)
    node = kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 70, DEADLINE_S)
    assert node.amounts[RESOURCE] == Amount(80, 70)
    assert set(node.unhealthy(RESOURCE)) == set(hardware.replicas(3))
    hardware.wait_for_probes(3, 3)
    assert updates(kubelet) == before + 1


def test_a_fault_shows_in_the_metrics(
    kubelet: Kubelet, hardware: Hardware, plugin: PluginProcess
) -> None:
    uuid = hardware.uuids[3]
    hardware.xid(3, 79)
    wait_allocatable(kubelet, 70)
    eventually(lambda: plugin.metric("gpuplugin_devices", health="Unhealthy") == 10)
    assert plugin.metric("gpuplugin_devices", health="Healthy") == 70
    xids = {"uuid": uuid, "gpu": "3", "xid": "79", "action": "reboot-node"}
    assert plugin.metric("gpuplugin_xid_events_total", **xids) == 1
    assert plugin.metric("gpuplugin_gpu_health", uuid=uuid, state="Unhealthy") == 1
    assert plugin.metric("gpuplugin_gpu_health", uuid=uuid, state="Healthy") == 0
    eventually(lambda: plugin.ready)  # one bad GPU is no reason to be not ready


def test_new_pods_avoid_the_bad_gpu(
    kubelet: Kubelet, hardware: Hardware, plugin: PluginProcess
) -> None:
    hardware.xid(0, 79)
    wait_allocatable(kubelet, 70)
    visible = {
        kubelet.run_pod(simple_pod(f"pod-{number}", {RESOURCE: 1}))
        .grants[0]
        .envs["NVIDIA_VISIBLE_DEVICES"]
        for number in range(14)
    }
    assert visible == set(hardware.uuids[1:])


@pytest.mark.parametrize("code", APPLICATION_XIDS)
def test_an_application_error_is_counted_and_nothing_else(
    kubelet: Kubelet, hardware: Hardware, plugin: PluginProcess, code: int
) -> None:
    before = updates(kubelet)
    hardware.xid(2, code)
    eventually(lambda: plugin.metric("gpuplugin_xid_events_total", gpu="2", xid=str(code)) == 1)
    hardware.wait_for_probes(2, 2)
    assert updates(kubelet) == before
    assert kubelet.view().amounts[RESOURCE] == Amount(80, 80)


def test_corrected_ecc_errors_are_only_counted(
    kubelet: Kubelet, hardware: Hardware, plugin: PluginProcess
) -> None:
    before = updates(kubelet)
    hardware.ecc(4, uncorrectable=False)
    hardware.ecc(4, uncorrectable=False)
    eventually(lambda: plugin.metric("gpuplugin_ecc_events_total", gpu="4", kind="corrected") == 2)
    hardware.wait_for_probes(4, 2)
    assert updates(kubelet) == before
    assert kubelet.view().amounts[RESOURCE] == Amount(80, 80)


def test_an_uncorrectable_ecc_error_is_a_fault_until_the_driver_says_it_was_none(
    kubelet: Kubelet, hardware: Hardware, plugin: PluginProcess
) -> None:
    before = updates(kubelet)
    hardware.ecc(4, uncorrectable=True)
    eventually(lambda: updates(kubelet) == before + 2)  # without its GPU, and with it again
    faults = {"uuid": hardware.uuids[4], "state": "Unhealthy", "cause": "ecc"}
    assert plugin.metric("gpuplugin_gpu_health_transitions_total", **faults) == 1
    wait_allocatable(kubelet, 80)


def test_a_storm_on_one_gpu_is_one_update(
    kubelet: Kubelet, hardware: Hardware, plugin: PluginProcess
) -> None:
    before = updates(kubelet)
    hardware.xid(5, 79, times=200)
    eventually(lambda: plugin.metric("gpuplugin_xid_events_total", gpu="5") == 200)
    wait_allocatable(kubelet, 70)
    hardware.wait_for_probes(5, 2)
    assert updates(kubelet) == before + 1


def test_a_storm_of_a_thousand_events_over_all_gpus_is_a_few_updates(
    kubelet: Kubelet, hardware: Hardware, plugin: PluginProcess
) -> None:
    before = updates(kubelet)
    for number in range(1000):
        hardware.xid(number % 8, 95)
    eventually(lambda: plugin.metric("gpuplugin_xid_events_total", xid="95") == 1000)
    wait_allocatable(kubelet, 0)
    hardware.wait_for_probes(0, 2)
    assert 1 <= updates(kubelet) - before <= 3
    assert kubelet.view().amounts[RESOURCE] == Amount(80, 0)


def test_a_gpu_that_was_reset_comes_back_after_the_quiet_period(
    kubelet: Kubelet, hardware: Hardware, plugin: PluginProcess
) -> None:
    hardware.xid(3, 79)
    wait_allocatable(kubelet, 70)
    hardware.recover(3)
    wait_allocatable(kubelet, 80)
    uuid = hardware.uuids[3]
    for state in ("Unhealthy", "Recovering", "Healthy"):
        transitions = plugin.metric(
            "gpuplugin_gpu_health_transitions_total", uuid=uuid, state=state
        )
        assert transitions == 1, state


def test_a_gpu_that_needs_a_reset_waits_for_it(
    kubelet: Kubelet, hardware: Hardware, plugin: PluginProcess
) -> None:
    hardware.xid(6, 95)
    wait_allocatable(kubelet, 70)
    hardware.wait_for_probes(6, 8)  # more than twice the quiet period
    node = kubelet.view()
    assert node.amounts[RESOURCE] == Amount(80, 70)
    assert set(node.unhealthy(RESOURCE)) == set(hardware.replicas(6))
    uuid = hardware.uuids[6]
    assert plugin.metric("gpuplugin_gpu_health", uuid=uuid, state="Unhealthy") == 1
    hardware.recover(6)
    wait_allocatable(kubelet, 80)


def test_a_reset_that_follows_at_once_is_seen_by_its_trace(
    kubelet: Kubelet, hardware: Hardware, plugin: PluginProcess
) -> None:
    """Fault and reset between two probes: only the epoch tells."""
    with hardware.node.update():  # held still, so both happen before the daemon looks
        hardware.xid(1, 95)
        hardware.recover(1)
    uuid = hardware.uuids[1]
    eventually(
        lambda: (
            plugin.metric("gpuplugin_gpu_health_transitions_total", uuid=uuid, state="Unhealthy")
            == 1
        )
    )
    wait_allocatable(kubelet, 80)


def test_a_gpu_that_is_lost_without_an_xid_is_noticed(
    kubelet: Kubelet, hardware: Hardware, plugin: PluginProcess
) -> None:
    hardware.lose(7)
    node = kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 70, DEADLINE_S)
    assert set(node.unhealthy(RESOURCE)) == set(hardware.replicas(7))
    hardware.recover(7)
    wait_allocatable(kubelet, 80)


def test_faults_of_two_gpus_are_told_apart(
    kubelet: Kubelet, hardware: Hardware, plugin: PluginProcess
) -> None:
    hardware.xid(0, 95)
    hardware.xid(1, 79)
    wait_allocatable(kubelet, 60)
    hardware.recover(1)
    wait_allocatable(kubelet, 70)
    assert set(kubelet.view().unhealthy(RESOURCE)) == set(hardware.replicas(0))


def test_a_pod_on_a_bad_gpu_keeps_its_device(
    kubelet: Kubelet, hardware: Hardware, plugin: PluginProcess
) -> None:
    status = kubelet.run_pod(simple_pod("worker", {RESOURCE: 1}))
    gpu = hardware.uuids.index(status.grants[0].envs["NVIDIA_VISIBLE_DEVICES"])
    hardware.xid(gpu, 79)
    node = kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 70, DEADLINE_S)
    assert node.pods["default/worker"].status == status
    assert status.grants[0].device_ids[0] in node.unhealthy(RESOURCE)
    assert status.phase is Phase.RUNNING


def test_a_gpu_falls_off_the_bus_under_load(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin, registration: str
) -> None:
    """No call for another GPU fails, one list tells it, and a reset brings it back."""
    plugin = start_plugin(hardware.backend, registration)
    wait_allocatable(kubelet, 80)
    hardware.wait_for_probes(0, 1)
    (socket,) = plugin.sockets()
    before = updates(kubelet)
    others = [one for gpu in range(8) if gpu != 3 for one in hardware.replicas(gpu)]
    with Load(plugin, others) as load:
        load.wait_for_calls(100)
        hardware.xid(3, 79)
        wait_allocatable(kubelet, 70)
        assert updates(kubelet) == before + 1
        assert set(kubelet.view().unhealthy(RESOURCE)) == set(hardware.replicas(3))
        load.wait_for_calls(100)
        hardware.recover(3)
        wait_allocatable(kubelet, 80)
        load.wait_for_calls(100)
    assert load.failures == []
    assert plugin.sockets() == (socket,), "nothing was restarted"
    assert plugin.metric("gpuplugin_task_restarts_total") == 0


class Load:
    """Threads that allocate the given devices in turn, until the block ends."""

    def __init__(self, plugin: PluginProcess, device_ids: list[str], threads: int = 3) -> None:
        self._plugin = plugin
        self._requests = [allocate_request((one,)) for one in device_ids]
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(number,)) for number in range(threads)
        ]
        self._calls = [0] * threads
        self.failures: list[Exception] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE_S)

    def wait_for_calls(self, count: int) -> None:
        """Wait until that many more calls were answered."""
        wanted = sum(self._calls) + count
        eventually(lambda: sum(self._calls) >= wanted)

    def _call(self, number: int) -> None:
        while not self._stop.is_set():
            request = self._requests[self._calls[number] % len(self._requests)]
            try:
                self._plugin.call("Allocate", request)
            except Exception as error:  # noqa: BLE001 - every failure is what is looked for
                self.failures.append(error)
            self._calls[number] += 1


# Tasks that end although nobody stops the plugin


@pytest.mark.parametrize(
    "name", ["heartbeat", "monitor", "endpoints", "reload", "control", "sampler"]
)
def test_a_task_that_is_cancelled_from_outside_runs_again(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin, name: str
) -> None:
    plugin = start_plugin(hardware.backend)
    eventually(lambda: plugin.ready)

    plugin.cancel_task(name)

    eventually(lambda: plugin.metric("gpuplugin_task_restarts_total", task=name) == 1)
    eventually(lambda: plugin.ready)
    assert plugin.get("/health").status == 200


def test_the_plugin_is_not_alive_without_one_of_its_tasks(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin
) -> None:
    plugin = start_plugin(hardware.backend)
    eventually(lambda: plugin.ready)

    plugin.cancel_task("supervisor of reload")

    eventually(lambda: plugin.get("/health").status == 503)
    assert "restart the plugin" in str(plugin.get("/health").parts["task:reload"])


def test_a_cancellation_that_nobody_asked_for_does_not_end_the_monitor(
    kubelet: Kubelet, start_plugin: StartPlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Python 3.11.2 leaves a timeout around a TaskGroup that failed (CPython gh-102780)."""
    driver = FakeDriver()
    driver.on_open = DriverUnavailable("not loaded")

    async def cancelled(_due_s: float) -> None:
        driver.on_open = None
        raise asyncio.CancelledError

    monkeypatch.setattr(monitor, "_sleep_until", cancelled)

    plugin = start_plugin(driver)

    eventually(lambda: plugin.ready)
    assert plugin.metric("gpuplugin_task_restarts_total", task="monitor") == 1
