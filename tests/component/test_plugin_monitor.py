"""A driver that fails, hangs, comes late or loses GPUs: only the driver is made up here."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from gpuplugin.daemon.tasks import Fatal
from hal import DriverNotFound, DriverUnavailable, Event, GpuAppeared, XidError
from sim.kubelet import Amount, Phase, simple_pod
from tests.component.fakedriver import FakeDriver, made_up_gpu
from tests.component.running import RESOURCE, PluginProcess, run_as_loaded, settings_for
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from hal import Gpu
    from sim.kubelet import Kubelet
    from tests.component.conftest import StartPlugin

LIBRARY = "libnvidia-ml.so.1"
NOT_FOUND = DriverNotFound(
    LIBRARY, ["/driver-root/usr/lib64", "/opt/elsewhere"], "Install the NVIDIA driver"
)
BROKEN = DriverUnavailable("the event set is broken", "Load the driver again")


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    """A driver with two GPUs that works until told otherwise."""
    driver = FakeDriver(2)
    yield driver
    driver.release()


def wait_for(kubelet: Kubelet, capacity: int, allocatable: int) -> None:
    amount = Amount(capacity, allocatable)
    kubelet.wait_until(lambda node: node.amounts.get(RESOURCE) == amount, DEADLINE_S)


def test_a_missing_driver_is_named_and_waited_for(
    kubelet: Kubelet, driver: FakeDriver, start_plugin: StartPlugin
) -> None:
    driver.on_open = NOT_FOUND
    plugin = start_plugin(driver)
    eventually(lambda: driver.opens)
    text = eventually(lambda: plugin.get("/ready").parts.get("monitor", {}).get("text"))
    assert plugin.get("/ready").status == 503
    assert plugin.get("/health").status == 200, "a missing driver is no reason to be killed"
    for word in (LIBRARY, *NOT_FOUND.searched, "Install the NVIDIA driver"):
        assert word in str(text)
    assert plugin.metric("gpuplugin_monitor_failures_total", stage="open") >= 1
    assert plugin.sockets() == ()
    assert kubelet.view().amounts == {}
    driver.on_open = None
    wait_for(kubelet, 20, 20)
    eventually(lambda: plugin.ready)


def test_a_driver_that_opens_but_does_not_list_is_not_open(
    kubelet: Kubelet, driver: FakeDriver, start_plugin: StartPlugin
) -> None:
    driver.on_gpus = BROKEN
    plugin = start_plugin(driver)
    eventually(lambda: plugin.metric("gpuplugin_monitor_failures_total", stage="open") >= 1)
    assert plugin.get("/ready").status == 503
    driver.on_gpus = None
    wait_for(kubelet, 20, 20)


def test_a_driver_that_cannot_watch_is_never_called_healthy(
    kubelet: Kubelet, driver: FakeDriver, start_plugin: StartPlugin
) -> None:
    driver.break_waiting(BROKEN)
    plugin = start_plugin(driver)
    eventually(lambda: plugin.metric("gpuplugin_monitor_failures_total", stage="open") >= 1)
    assert plugin.get("/ready").status == 503
    assert kubelet.view().allocatable(RESOURCE) == 0
    driver.break_waiting(None)
    wait_for(kubelet, 20, 20)


class FindsBeforeItWaits(FakeDriver):
    """As NVML's watcher: what a scan has found is returned at once, whether it can wait or not."""

    def open(self) -> None:
        super().open()
        self.found: list[Event] = [GpuAppeared(gpu.uuid) for gpu in self.listed]

    def wait_events(self, timeout_s: float) -> Sequence[Event]:
        if self.found:
            return [self.found.pop()]
        return super().wait_events(timeout_s)


def test_a_driver_that_finds_but_cannot_wait_is_never_called_healthy(
    kubelet: Kubelet, start_plugin: StartPlugin
) -> None:
    driver = FindsBeforeItWaits()
    driver.break_waiting(BROKEN)
    plugin = start_plugin(driver)
    eventually(lambda: plugin.metric("gpuplugin_monitor_failures_total", stage="open") >= 2)
    assert plugin.get("/ready").status == 503
    assert kubelet.view().allocatable(RESOURCE) == 0
    driver.break_waiting(None)
    wait_for(kubelet, 20, 20)


def test_a_monitor_that_cannot_watch_is_blind_and_sees_again(
    kubelet: Kubelet, driver: FakeDriver, start_plugin: StartPlugin
) -> None:
    plugin = start_plugin(driver)
    wait_for(kubelet, 20, 20)
    eventually(lambda: plugin.ready)
    assert plugin.metric("gpuplugin_monitor_blind") == 0
    driver.break_waiting(BROKEN)
    wait_for(kubelet, 20, 0)
    eventually(lambda: plugin.get("/ready").status == 503)
    assert plugin.metric("gpuplugin_monitor_blind") == 1
    assert plugin.metric("gpuplugin_monitor_failures_total", stage="events") >= 1
    assert BROKEN.cause in str(plugin.get("/ready").parts["monitor"]["text"])
    driver.break_waiting(None)
    wait_for(kubelet, 20, 20)
    eventually(lambda: plugin.ready)
    assert plugin.metric("gpuplugin_monitor_blind") == 0


def test_probes_that_always_fail_make_it_blind_too(
    kubelet: Kubelet, driver: FakeDriver, start_plugin: StartPlugin
) -> None:
    plugin = start_plugin(driver)
    wait_for(kubelet, 20, 20)
    driver.on_probe = BROKEN
    wait_for(kubelet, 20, 0)
    eventually(lambda: plugin.get("/ready").status == 503)
    assert plugin.metric("gpuplugin_monitor_failures_total", stage="probe") >= 2
    driver.on_probe = None
    wait_for(kubelet, 20, 20)
    eventually(lambda: plugin.ready)


class FailsOnce(FakeDriver):
    """Once `fails` is set, one listing fails: until somebody looks it could be several."""

    fails = False

    def gpus(self) -> tuple[Gpu, ...]:
        fails, self.fails = self.fails, False
        if fails:
            raise BROKEN
        return super().gpus()


def test_one_failure_is_forgiven(kubelet: Kubelet, start_plugin: StartPlugin) -> None:
    driver = FailsOnce(2)
    plugin = start_plugin(driver)
    wait_for(kubelet, 20, 20)
    before = kubelet.view().list_updates[RESOURCE]
    driver.fails = True
    eventually(lambda: plugin.metric("gpuplugin_monitor_failures_total", stage="probe") == 1)
    listings = driver.listings
    eventually(lambda: driver.listings >= listings + 2)
    assert plugin.metric("gpuplugin_monitor_blind") == 0
    assert kubelet.view().list_updates[RESOURCE] == before


@pytest.mark.parametrize("call", ["on_gpus", "on_probe"])
def test_an_error_that_no_driver_should_raise_does_not_end_the_watching(
    kubelet: Kubelet, driver: FakeDriver, start_plugin: StartPlugin, call: str
) -> None:
    """A bug in a backend: the monitor is restarted and works again."""
    plugin = start_plugin(driver)
    wait_for(kubelet, 20, 20)
    setattr(driver, call, RuntimeError("a bug"))
    eventually(lambda: plugin.metric("gpuplugin_task_restarts_total", task="monitor") >= 1)
    setattr(driver, call, None)
    eventually(lambda: "watching 2 GPUs" in str(plugin.get("/ready").parts["monitor"]["text"]))
    driver.report(XidError(driver.listed[0].uuid, 79))
    wait_for(kubelet, 20, 10)


def test_it_ends_at_start_if_the_user_asked_for_that(kubelet_dir: Path, driver: FakeDriver) -> None:
    driver.on_open = NOT_FOUND
    settings = settings_for(kubelet_dir, {"--fail-on-init-error": "true"})
    with PluginProcess(settings, driver) as plugin:
        failure = plugin.join()
    assert isinstance(failure, Fatal)
    assert LIBRARY in str(failure)


def test_run_answers_one_for_a_fatal_failure(kubelet_dir: Path, driver: FakeDriver) -> None:
    driver.on_open = NOT_FOUND
    settings = settings_for(kubelet_dir, {"--fail-on-init-error": "true"})
    assert asyncio.run(run_as_loaded(settings, driver)) == 1


def test_a_failure_after_the_start_is_no_end_whatever_the_user_asked_for(
    kubelet: Kubelet, driver: FakeDriver, start_plugin: StartPlugin
) -> None:
    plugin = start_plugin(driver, flags={"--fail-on-init-error": "true"})
    wait_for(kubelet, 20, 20)
    driver.on_open = NOT_FOUND
    driver.break_waiting(BROKEN)
    wait_for(kubelet, 20, 0)
    eventually(lambda: plugin.metric("gpuplugin_monitor_failures_total", stage="open") >= 1)
    driver.on_open = None
    driver.break_waiting(None)
    wait_for(kubelet, 20, 20)


def test_a_driver_that_hangs_holds_up_no_pod(
    kubelet: Kubelet, driver: FakeDriver, start_plugin: StartPlugin
) -> None:
    plugin = start_plugin(driver)
    wait_for(kubelet, 20, 20)
    driver.hang()
    assert driver.waiting.wait(DEADLINE_S)
    for number in range(3):
        status = kubelet.run_pod(simple_pod(f"pod-{number}", {RESOURCE: 1}))
        assert status.phase is Phase.RUNNING
    assert plugin.get("/metrics").status == 200
    assert plugin.get("/health").status == 200


def test_no_gpu_is_not_ready_and_one_that_comes_is_served(
    kubelet: Kubelet, start_plugin: StartPlugin
) -> None:
    driver = FakeDriver(0)
    plugin = start_plugin(driver)
    eventually(lambda: "no GPU" in str(plugin.get("/ready").parts.get("monitor", {}).get("text")))
    assert plugin.get("/ready").status == 503
    assert plugin.sockets() == ()
    driver.listed = (made_up_gpu(0),)
    wait_for(kubelet, 10, 10)
    eventually(lambda: plugin.ready)


def test_a_gpu_that_vanishes_stays_listed_as_unhealthy(
    kubelet: Kubelet, driver: FakeDriver, start_plugin: StartPlugin
) -> None:
    plugin = start_plugin(driver)
    wait_for(kubelet, 20, 20)
    status = kubelet.run_pod(simple_pod("first", {RESOURCE: 1}))
    gone, stays = driver.listed
    driver.listed = (stays,)
    wait_for(kubelet, 20, 10)
    unhealthy = kubelet.view().unhealthy(RESOURCE)
    assert {one.partition("::")[0] for one in unhealthy} == {gone.uuid}
    assert kubelet.view().pods["default/first"].status == status
    for number in range(3):
        grants = kubelet.run_pod(simple_pod(f"pod-{number}", {RESOURCE: 1})).grants
        assert grants[0].envs["NVIDIA_VISIBLE_DEVICES"] == stays.uuid
    eventually(lambda: plugin.ready)
    driver.listed = (gone, stays)
    wait_for(kubelet, 20, 20)


def test_all_gpus_that_vanish_stay_listed(
    kubelet: Kubelet, driver: FakeDriver, start_plugin: StartPlugin
) -> None:
    start_plugin(driver)
    wait_for(kubelet, 20, 20)
    driver.listed = ()
    wait_for(kubelet, 20, 0)


def test_a_gpu_that_is_plugged_in_is_added(
    kubelet: Kubelet, driver: FakeDriver, start_plugin: StartPlugin
) -> None:
    plugin = start_plugin(driver)
    wait_for(kubelet, 20, 20)
    (socket,) = plugin.sockets()
    driver.listed = tuple(made_up_gpu(index) for index in range(3))
    wait_for(kubelet, 30, 30)
    assert plugin.sockets() == (socket,), "the same stream carries the longer list"


def test_an_xid_that_names_no_gpu_concerns_all(
    kubelet: Kubelet, driver: FakeDriver, start_plugin: StartPlugin
) -> None:
    start_plugin(driver, flags={"--health-quiet-period": "10m"})
    wait_for(kubelet, 20, 20)
    driver.report(XidError(None, 79))
    wait_for(kubelet, 20, 0)


def test_without_a_probe_interval_an_idle_driver_is_left_alone(
    kubelet: Kubelet, start_plugin: StartPlugin
) -> None:
    """A laptop's GPU may sleep: events alone show faults, and a GPU with one is probed."""
    driver = FakeDriver(2)
    flags = {"--health-probe-interval": "0", "--metrics-interval": "0"}
    plugin = start_plugin(driver, flags=flags)
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 20, DEADLINE_S)
    waits, listings = driver.waits, driver.listings
    driver.report(XidError(driver.listed[0].uuid, 31))  # an application's error
    eventually(lambda: driver.waits > waits)
    eventually(lambda: plugin.metric("gpuplugin_xid_events_total", xid="31") == 1)
    assert driver.listings == listings

    driver.report(XidError(driver.listed[0].uuid, 48))
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 10, DEADLINE_S)
