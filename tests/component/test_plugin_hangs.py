"""A GPU whose driver calls do not return, as the NVML backend meets it: it costs that GPU alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from sim.kubelet import Amount
from sim.nvml.library import CannotBuild, built_library
from tests.component.conftest import short_folder
from tests.component.nvmlhardware import NvmlHardware
from tests.component.running import RESOURCE
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sim.kubelet import Kubelet
    from tests.component.conftest import StartPlugin
    from tests.component.running import PluginProcess

REPLICAS = 10
BLIND_AFTER_S = 1.5
FLAGS = {
    "--health-probe-interval": "250ms",
    "--health-blind-after": f"{BLIND_AFTER_S:g}s",
    "--health-quiet-period": "500ms",
}
BLIND, STATE = "gpuplugin_monitor_blind", "gpuplugin_gpu_health"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuplugin.core.watch.LEAST_HANG_S", 0.3)


@pytest.fixture(params=[1, 3])
def gpus(request: pytest.FixtureRequest) -> Iterator[NvmlHardware]:
    """A node of one GPU, and one of four."""
    with short_folder() as folder:
        try:
            hardware = NvmlHardware(folder, built_library(), request.param)
        except CannotBuild as error:
            pytest.skip(str(error))
        try:
            yield hardware
        finally:
            hardware.driver_up()
            for gpu in range(len(hardware.uuids)):
                hardware.recover(gpu)
            hardware.stop()


def healthy(plugin: PluginProcess, gpu: str) -> float:
    return plugin.metric("gpuplugin_gpu_healthy", gpu=gpu)


def test_a_gpu_that_hangs_costs_that_gpu_alone_and_recovers_like_others(
    kubelet: Kubelet, gpus: NvmlHardware, start_plugin: StartPlugin
) -> None:
    count = len(gpus.uuids)
    plugin = start_plugin(gpus.backend, flags=FLAGS)
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == count * REPLICAS, DEADLINE_S)
    stuck = count - 1

    gpus.hang(stuck)
    hung_s = time.monotonic()
    amount = Amount(count * REPLICAS, stuck * REPLICAS)
    node = kubelet.wait_until(lambda node: node.amounts.get(RESOURCE) == amount, DEADLINE_S)

    noticed_s = time.monotonic() - hung_s
    assert {one.partition("::")[0] for one in node.unhealthy(RESOURCE)} == {gpus.uuids[stuck]}
    assert noticed_s < 2 * BLIND_AFTER_S, "a busy machine is given twice the time"
    # It stays so: nothing is opened anew, the others are watched as before.
    updates = node.list_updates[RESOURCE]
    if count > 1:
        gpus.wait_for_probes(0, 6)
    assert plugin.metric(BLIND) == 0
    assert kubelet.view().list_updates[RESOURCE] == updates

    gpus.recover(stuck)
    eventually(lambda: plugin.metric("gpuplugin_gpu_health_transitions_total", state="Recovering"))
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == count * REPLICAS, DEADLINE_S)
    assert kubelet.view().list_updates[RESOURCE] == updates + 1


def test_events_of_other_gpus_arrive_while_one_hangs(
    kubelet: Kubelet, gpus: NvmlHardware, start_plugin: StartPlugin
) -> None:
    if len(gpus.uuids) == 1:
        pytest.skip("there are no others")
    start_plugin(gpus.backend, flags=FLAGS)
    all_devices = len(gpus.uuids) * REPLICAS
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == all_devices, DEADLINE_S)
    gpus.hang(0)
    kubelet.wait_until(
        lambda node: node.allocatable(RESOURCE) == all_devices - REPLICAS, DEADLINE_S
    )
    gpus.xid(1, 79)
    kubelet.wait_until(
        lambda node: node.allocatable(RESOURCE) == all_devices - 2 * REPLICAS, DEADLINE_S
    )


def test_a_gpu_that_hangs_from_the_start_keeps_no_other_from_being_offered(
    kubelet: Kubelet,
    gpus: NvmlHardware,
    start_plugin: StartPlugin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gpuplugin.core.watch.OPEN_DEADLINE_S", 0.5)
    monkeypatch.setattr("gpuplugin.core.watch.CALL_DEADLINE_S", 0.5)
    others = len(gpus.uuids) - 1
    gpus.hang(0)
    plugin = start_plugin(gpus.backend, flags=FLAGS)
    if others:
        kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == others * REPLICAS, DEADLINE_S)
        assert kubelet.view().amounts[RESOURCE].capacity == (others + 1) * REPLICAS
    else:
        eventually(
            lambda: (
                plugin.metric("gpuplugin_monitor_failures_total", stage="open")
                or plugin.metric("gpuplugin_gpu_health_transitions_total", state="Unhealthy")
            )
        )
    gpus.recover(0)
    kubelet.wait_until(
        lambda node: node.allocatable(RESOURCE) == (others + 1) * REPLICAS, DEADLINE_S
    )
