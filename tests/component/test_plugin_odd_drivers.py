"""Drivers as they misbehave, and what the plugin makes of it: health, metrics, log and page.

Each test runs on the NVML backend over the simulated library, and on the simulated backend.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from pydantic import BaseModel, TypeAdapter

from gpuplugin.linesocket import ask
from hal import GIB, ComputeMode, FabricState
from sim.gpu.faults import (
    ComputeModeChange,
    ConfidentialReady,
    Fabric,
    Recovery,
    Returns,
)
from sim.kubelet import Amount
from sim.nvml.library import CannotBuild, built_library
from tests.component.nvmlhardware import NvmlHardware
from tests.component.running import RESOURCE, Hardware
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sim.kubelet import Kubelet
    from tests.component.conftest import StartPlugin
    from tests.component.running import PluginProcess

REPLICAS = 10
QUICK = {"--metrics-interval": "100ms"}


class MakeNode(Protocol):
    def __call__(self, count: int = 2, **scenario: object) -> Hardware: ...


@pytest.fixture(params=["nvml", "sim"])
def make(request: pytest.FixtureRequest) -> Iterator[MakeNode]:
    """Nodes that are read in one of the two ways."""
    with ExitStack() as stack:

        def made(count: int = 2, **scenario: object) -> Hardware:
            if request.param == "sim":
                hardware = Hardware(count, **scenario)
            else:
                folder = Path(tempfile.mkdtemp(prefix="gp"))
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                try:
                    hardware = NvmlHardware(folder, built_library(), count, **scenario)
                except CannotBuild as error:
                    pytest.skip(str(error))
            stack.callback(hardware.stop)
            return hardware

        yield made


def returns(calls: str, **what: object) -> Returns:
    return Returns.model_validate({"calls": calls.split(), **what})


def wait_for(kubelet: Kubelet, allocatable: int, capacity: int = 2 * REPLICAS) -> None:
    amount = Amount(capacity, allocatable)
    kubelet.wait_until(lambda node: node.amounts.get(RESOURCE) == amount, DEADLINE_S)


def values(plugin: PluginProcess, name: str, uuid: str) -> list[float]:
    return [one.value for one in plugin.samples(name) if one.labels["uuid"] == uuid]


def seen(plugin: PluginProcess) -> bool:
    """A reading is there."""
    return bool(plugin.samples("gpuplugin_gpu_info"))


class Unit(BaseModel):
    """A GPU as `gpuplugin health` is told of it."""

    uuid: str
    state: str
    reason: str
    action: str
    unknown: list[str] = []


def units(plugin: PluginProcess) -> dict[str, Unit]:
    (socket,) = plugin.folder.glob(".gpuplugin-control.sock")
    told = TypeAdapter(list[Unit]).validate_python(ask(socket, {"report": True}, 5)["units"])
    return {unit.uuid: unit for unit in told}


def test_a_name_that_is_not_utf_8_costs_nothing(
    kubelet: Kubelet, make: MakeNode, start_plugin: StartPlugin
) -> None:
    hardware = make()
    hardware.let(0, returns("nvmlDeviceGetName", value="hex:f8 8a 41"))
    plugin = start_plugin(hardware.backend, flags=QUICK)
    wait_for(kubelet, 2 * REPLICAS)
    eventually(lambda: seen(plugin))
    products = {one.labels["product"] for one in plugin.samples("gpuplugin_gpu_info")}
    assert products == {"\ufffd\ufffdA", "NVIDIA H100 80GB HBM3"}


@pytest.mark.parametrize("code", [2, 6, 7, 14, 17, 20, 27, 29])
def test_a_value_that_cannot_be_had_at_the_start_is_named_and_costs_no_gpu(
    kubelet: Kubelet,
    make: MakeNode,
    start_plugin: StartPlugin,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    hardware = make()
    hardware.let(0, returns("description memory mig", code=code))
    plugin = start_plugin(hardware.backend, flags=QUICK)
    wait_for(kubelet, 2 * REPLICAS)
    told = units(plugin)[hardware.uuids[0]].unknown
    for call in ("nvmlDeviceGetName", "nvmlDeviceGetMinorNumber", "nvmlDeviceGetMemoryInfo_v2"):
        assert any(one.startswith(f"{call}: ") and f"({code})" in one for one in told)
        assert f"unknown: {call}: " in caplog.text
    assert units(plugin)[hardware.uuids[1]].unknown == []


def test_permission_that_is_refused_later_is_called_that_and_ends_by_itself(
    kubelet: Kubelet, make: MakeNode, start_plugin: StartPlugin
) -> None:
    hardware = make()
    plugin = start_plugin(hardware.backend)
    wait_for(kubelet, 2 * REPLICAS)
    hardware.let(0, returns("identity", code=4))
    wait_for(kubelet, REPLICAS)
    unit = units(plugin)[hardware.uuids[0]]
    assert unit.action == "check-permissions"
    assert "GPU cannot be read: nvmlDeviceGet" in unit.reason
    assert "(4)" in unit.reason
    hardware.let(0, returns("identity", code="SUCCESS"))
    wait_for(kubelet, 2 * REPLICAS)


def test_a_chip_without_memory_of_its_own_has_no_series_and_no_verdict_on_memory(
    kubelet: Kubelet, make: MakeNode, start_plugin: StartPlugin
) -> None:
    hardware = make(gpus=[{"model": "gb10"}, {"model": "h100-sxm5-80gb"}])
    plugin = start_plugin(hardware.backend, flags=QUICK)
    wait_for(kubelet, 2 * REPLICAS)
    chip, board = hardware.uuids
    eventually(lambda: seen(plugin))
    for name in ("used_bytes", "total_bytes", "headroom_bytes"):
        assert values(plugin, f"gpuplugin_gpu_memory_{name}", chip) == []
        assert len(values(plugin, f"gpuplugin_gpu_memory_{name}", board)) == 1
    assert units(plugin)[chip].unknown == []


def test_readings_that_cannot_be_are_unknown(
    kubelet: Kubelet, make: MakeNode, start_plugin: StartPlugin
) -> None:
    hardware = make()
    hardware.let(0, returns("sensors", value=0xFFFFFFFF))
    plugin = start_plugin(hardware.backend, flags=QUICK)
    wait_for(kubelet, 2 * REPLICAS)
    odd, sound = hardware.uuids
    eventually(lambda: seen(plugin))
    for name in ("utilization_ratio", "power_watts", "temperature_celsius", "clock_hertz"):
        assert values(plugin, f"gpuplugin_gpu_{name}", odd) == []
        assert values(plugin, f"gpuplugin_gpu_{name}", sound) != []
    told = eventually(lambda: units(plugin)[odd].unknown)
    assert any("nvmlDeviceGetPowerUsage returned 4294967295" in one for one in told)


def test_a_gpu_that_is_not_in_the_fabric_is_unhealthy_until_it_is(
    kubelet: Kubelet, make: MakeNode, start_plugin: StartPlugin
) -> None:
    hardware = make()
    hardware.let(0, Fabric(state=FabricState.IN_PROGRESS))
    plugin = start_plugin(hardware.backend)
    wait_for(kubelet, REPLICAS)
    unit = units(plugin)[hardware.uuids[0]]
    assert (unit.reason, unit.action) == (
        "NVLink fabric: in-progress",
        "check-fabric-manager",
    )
    hardware.let(0, Fabric(state=FabricState.COMPLETED, code="UNKNOWN"))
    hardware.wait_for_probes(0, 2)
    assert units(plugin)[hardware.uuids[0]].state == "Unhealthy"
    hardware.let(0, Fabric(state=FabricState.COMPLETED))
    wait_for(kubelet, 2 * REPLICAS)


def test_the_state_of_the_fabric_can_be_left_out(
    kubelet: Kubelet, make: MakeNode, start_plugin: StartPlugin
) -> None:
    hardware = make()
    hardware.let(0, Fabric(state=FabricState.IN_PROGRESS))
    start_plugin(hardware.backend, flags={"--health-fabric-check": "false"})
    wait_for(kubelet, 2 * REPLICAS)


def test_gpus_that_accept_no_confidential_work_are_unhealthy_until_they_do(
    kubelet: Kubelet, make: MakeNode, start_plugin: StartPlugin
) -> None:
    hardware = make(confidential_compute=True)
    hardware.let_node(ConfidentialReady(ready=False))
    plugin = start_plugin(hardware.backend)
    wait_for(kubelet, 0)
    assert {unit.action for unit in units(plugin).values()} == {"set-gpu-ready-state"}
    hardware.let_node(ConfidentialReady(ready=True))
    wait_for(kubelet, 2 * REPLICAS)


TENANTS = [
    {"name": "trainer", "gpu": 0, "memory_gib": 12},
    {"name": "notebook", "gpu": 0, "memory_gib": 9},
    {"name": "desktop", "gpu": 0, "memory_gib": 1, "graphics": True},
]


@pytest.mark.parametrize("driver", ["535.43.02", "535.54.03", "535.86.10", "580.105.08"])
def test_all_processes_count_whatever_the_driver_and_their_kind(
    make: MakeNode, driver: str
) -> None:
    hardware = make(driver_version=driver, tenants=TENANTS)
    hardware.backend.open()
    found = hardware.backend.processes(hardware.uuids[0])
    assert {(one.name, (one.memory_bytes or 0) // GIB, one.graphics) for one in found} == {
        ("trainer", 12, False),
        ("notebook", 9, False),
        ("desktop", 1, True),
    }
    hardware.backend.close()


def test_headroom_is_what_programs_can_allocate(
    kubelet: Kubelet, make: MakeNode, start_plugin: StartPlugin
) -> None:
    hardware = make(tenants=TENANTS)
    plugin = start_plugin(hardware.backend, flags=QUICK)
    wait_for(kubelet, 2 * REPLICAS)
    eventually(lambda: seen(plugin))
    with hardware.node.read() as model:
        profile = model.present[0].profile
    reserved = profile.memory_reserved_bytes or 0
    uuid = hardware.uuids[0]
    free = profile.memory_bytes - reserved - 22 * GIB
    assert values(plugin, "gpuplugin_gpu_memory_headroom_bytes", uuid) == [free]
    assert values(plugin, "gpuplugin_gpu_memory_used_bytes", uuid) == [22 * GIB + reserved]


def test_a_shared_gpu_in_exclusive_mode_is_warned_of(
    kubelet: Kubelet,
    make: MakeNode,
    start_plugin: StartPlugin,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hardware = make()
    hardware.let(1, ComputeModeChange(mode=ComputeMode.EXCLUSIVE_PROCESS))
    plugin = start_plugin(hardware.backend)
    wait_for(kubelet, 2 * REPLICAS)
    warning = "GPU 1 is shared and in compute mode exclusive-process"
    assert warning in caplog.text
    eventually(lambda: plugin.ready)
    assert warning in str(plugin.get("/ready").parts["inventory"]["text"])
    modes = {one.labels["gpu"]: one.labels["mode"] for one in plugin.samples(MODE)}
    assert modes == {"0": "default", "1": "exclusive-process"}
    hardware.let(1, ComputeModeChange(mode=ComputeMode.DEFAULT))
    eventually(lambda: warning not in str(plugin.get("/ready").parts["inventory"]["text"]))


MODE = "gpuplugin_gpu_compute_mode"


def test_a_gpu_of_which_no_call_gives_a_value_is_unhealthy_and_recovers(
    kubelet: Kubelet, make: MakeNode, start_plugin: StartPlugin
) -> None:
    """Its handle and UUID, which the driver keeps, can still be had."""
    hardware = make()
    plugin = start_plugin(hardware.backend)
    wait_for(kubelet, 2 * REPLICAS)
    hardware.let(0, returns("description memory processes sensors health mig", code="UNKNOWN"))
    wait_for(kubelet, REPLICAS)
    assert units(plugin)[hardware.uuids[0]].state == "Unhealthy"
    hardware.let(0, Recovery())
    wait_for(kubelet, 2 * REPLICAS)
