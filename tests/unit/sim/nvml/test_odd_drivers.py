"""Drivers that misbehave, as programs on the library see them: the bytes that NVML writes."""

from __future__ import annotations

import ctypes
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pynvml
import pytest

from sim.node.node import SimulatedNode
from sim.node.realtime import RealTimeNode
from sim.node.scenario import parse_scenario
from sim.nvml.server import NvmlServer
from tests.conformance.library import bound
from tests.unit.sim.nvml.conftest import World, code_of

if TYPE_CHECKING:
    from collections.abc import Iterator

GIB = 1024**3


def handle(index: int) -> ctypes.c_void_p:
    return ctypes.cast(pynvml.nvmlDeviceGetHandleByIndex(index), ctypes.c_void_p)


@contextmanager
def node_of(scenario: str, library: Path) -> Iterator[World]:
    """A node of its own, with `pynvml` initialised on it."""
    node = RealTimeNode(SimulatedNode(parse_scenario(scenario, "odd")))
    node.start()
    with tempfile.TemporaryDirectory(prefix="gp") as folder:
        socket = Path(folder) / "nvml.sock"
        server = NvmlServer(node, socket)
        try:
            with closing(server), bound(library, socket):
                pynvml.nvmlInit()
                yield World(node, server, socket)
        finally:
            node.stop()


def test_a_name_that_is_not_utf_8_is_written_as_it_is(nvml: World) -> None:
    nvml.let('{kind: returns, calls: [nvmlDeviceGetName], value: "hex:f8 8a 41"}')
    room = ctypes.create_string_buffer(96)
    assert pynvml.nvmlLib.nvmlDeviceGetName(handle(0), room, 96) == 0
    assert room.value == b"\xf8\x8a\x41"


def test_odd_numbers_fill_what_they_are_written_to(nvml: World) -> None:
    nvml.let("{kind: returns, calls: [sensors], value: 4294967295}")
    gpu = handle(0)
    assert pynvml.nvmlDeviceGetPowerUsage(gpu) == 0xFFFFFFFF
    rates = pynvml.nvmlDeviceGetUtilizationRates(gpu)
    assert (rates.gpu, rates.memory) == (0xFFFFFFFF, 0xFFFFFFFF)


def test_a_device_cannot_be_found_by_any_of_its_names(nvml: World) -> None:
    uuid, bus_id = (
        read(handle(1))
        for read in (pynvml.nvmlDeviceGetUUID, lambda gpu: pynvml.nvmlDeviceGetPciInfo(gpu).busId)
    )
    nvml.let("{kind: returns, calls: [identity], code: NO_PERMISSION}", gpu=1)
    for find in (
        lambda: pynvml.nvmlDeviceGetHandleByIndex(1),
        lambda: pynvml.nvmlDeviceGetHandleByUUID(uuid),
        lambda: pynvml.nvmlDeviceGetHandleByPciBusId(bus_id),
    ):
        assert code_of(find) == pynvml.NVML_ERROR_NO_PERMISSION
    assert code_of(lambda: pynvml.nvmlDeviceGetHandleByIndex(0)) == 0


def test_the_fabric_is_completed_until_a_fault_says_otherwise(nvml: World) -> None:
    gpu = handle(0)
    for info, read in (
        (pynvml.c_nvmlGpuFabricInfo_t(), pynvml.nvmlDeviceGetGpuFabricInfo),
        (pynvml.c_nvmlGpuFabricInfo_v2_t(), pynvml.nvmlDeviceGetGpuFabricInfoV),
        (pynvml.c_nvmlGpuFabricInfo_v3_t(), pynvml.nvmlDeviceGetGpuFabricInfoV),
    ):
        nvml.let("{kind: fabric, state: completed}")
        read(gpu, ctypes.byref(info))
        assert (info.state, info.status) == (pynvml.NVML_GPU_FABRIC_STATE_COMPLETED, 0)
        nvml.let("{kind: fabric, state: in-progress}")
        read(gpu, ctypes.byref(info))
        assert info.state == pynvml.NVML_GPU_FABRIC_STATE_IN_PROGRESS
        nvml.let("{kind: fabric, state: completed, code: UNKNOWN}")
        read(gpu, ctypes.byref(info))
        assert info.status == pynvml.NVML_ERROR_UNKNOWN
    info = pynvml.c_nvmlGpuFabricInfo_v2_t()
    without = handle(4)
    assert code_of(lambda: pynvml.nvmlDeviceGetGpuFabricInfoV(without, ctypes.byref(info))) == (
        pynvml.NVML_ERROR_NOT_SUPPORTED
    )


def test_energy_grows_with_time(nvml: World) -> None:
    gpu = handle(0)
    first = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    while pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) == first:
        pass
    (value,) = pynvml.nvmlDeviceGetFieldValues(gpu, [pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION])
    assert value.value.ullVal > first


def test_compute_mode_is_that_of_the_group_and_can_be_set(library: Path) -> None:
    with node_of("gpus: [{model: t4, compute_mode: exclusive-process}]", library) as world:
        gpu = handle(0)
        assert pynvml.nvmlDeviceGetComputeMode(gpu) == pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS
        world.let("{kind: compute-mode, mode: prohibited}")
        assert pynvml.nvmlDeviceGetComputeMode(gpu) == pynvml.NVML_COMPUTEMODE_PROHIBITED


def test_confidential_computing(library: Path) -> None:
    scenario = "{confidential_compute: true, gpus: [{model: h100-sxm5-80gb}]}"
    with node_of(scenario, library) as world:
        assert pynvml.nvmlSystemGetConfComputeState().ccFeature == 1
        assert pynvml.nvmlSystemGetConfComputeGpusReadyState() == 1
        world.let("{kind: confidential-ready, ready: false}")
        assert pynvml.nvmlSystemGetConfComputeGpusReadyState() == 0


def test_without_confidential_computing_it_is_not_supported(nvml: World) -> None:
    for read in (
        pynvml.nvmlSystemGetConfComputeState,
        pynvml.nvmlSystemGetConfComputeGpusReadyState,
    ):
        assert code_of(read) == pynvml.NVML_ERROR_NOT_SUPPORTED


@pytest.mark.parametrize("model", ["gb10", "jetson-orin-nano-8gb"])
def test_a_chip_that_uses_the_hosts_memory_reports_none(library: Path, model: str) -> None:
    with node_of(f"gpus: [{{model: {model}}}]", library):
        gpu = handle(0)
        for version in (None, pynvml.nvmlMemory_v2):
            with pytest.raises(pynvml.NVMLError) as error:
                pynvml.nvmlDeviceGetMemoryInfo(gpu, version=version)
            assert error.value.value == pynvml.NVML_ERROR_NOT_SUPPORTED


TENANTS = """
driver_version: "{driver}"
gpus: [{{model: h100-sxm5-80gb}}]
tenants:
  - {{name: trainer, gpu: 0, memory_gib: 12}}
  - {{name: notebook, gpu: 0, memory_gib: 9}}
  - {{name: desktop, gpu: 0, memory_gib: 1, graphics: true}}
"""


def test_graphics_processes_are_listed_apart(library: Path) -> None:
    with node_of(TENANTS.format(driver="580.105.08"), library):
        gpu = handle(0)
        compute = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)
        graphics = pynvml.nvmlDeviceGetGraphicsRunningProcesses(gpu)
        assert sorted(one.usedGpuMemory // GIB for one in compute) == [9, 12]
        assert [one.usedGpuMemory // GIB for one in graphics] == [1]


@pytest.mark.parametrize(
    ("driver", "version", "bytes_each"),
    [
        ("535.43.02", "_v3", 32),
        ("535.86.10", "_v3", 32),
        ("535.98", "_v3", 24),
        ("535.54.03", "_v2", 24),
        ("580.105.08", "_v3", 24),
    ],
)
def test_some_drivers_write_longer_process_entries(
    library: Path, driver: str, version: str, bytes_each: int
) -> None:
    with node_of(TENANTS.format(driver=driver), library):
        call = getattr(pynvml.nvmlLib, f"nvmlDeviceGetComputeRunningProcesses{version}")
        count, room = ctypes.c_uint(8), ctypes.create_string_buffer(8 * 32)
        assert call(handle(0), ctypes.byref(count), room) == 0
        assert count.value == 2
        used = [
            int.from_bytes(room.raw[at + 8 : at + 16], "little") // GIB for at in (0, bytes_each)
        ]
        assert sorted(used) == [9, 12]
