"""What the binding gets from the library: identities, readings, MIG, and the right codes."""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING

import pynvml
import pytest

from tests.unit.sim.nvml.conftest import code_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.sim.nvml.conftest import World

GIB = 1024**3
H100, OTHER_H100, IN_MIG_MODE, RTX3090, T4 = range(5)


def handle(index: int) -> ctypes.c_void_p:
    """The GPU of an index."""
    return ctypes.cast(pynvml.nvmlDeviceGetHandleByIndex(index), ctypes.c_void_p)


def names_of_profiles(gpu: ctypes.c_void_p) -> dict[int, str]:
    """The GPU instance profiles of a GPU by id."""
    names: dict[int, str] = {}
    for number in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        with contextlib.suppress(pynvml.NVMLError_NotSupported):
            info = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, number)
            names[info.id] = info.name
    return names


def test_a_gpu_is_found_by_each_of_its_names(nvml: World) -> None:
    for index in (H100, OTHER_H100, IN_MIG_MODE, T4):
        gpu = handle(index)
        value = gpu.value
        found = [
            pynvml.nvmlDeviceGetHandleByUUID(pynvml.nvmlDeviceGetUUID(gpu)),
            pynvml.nvmlDeviceGetHandleBySerial(pynvml.nvmlDeviceGetSerial(gpu)),
            pynvml.nvmlDeviceGetHandleByPciBusId(pynvml.nvmlDeviceGetPciInfo(gpu).busId),
            pynvml.nvmlDeviceGetHandleByPciBusId(pynvml.nvmlDeviceGetPciInfo(gpu).busIdLegacy),
            pynvml.nvmlDeviceGetHandleByUUIDV(
                pynvml.nvmlDeviceGetUUID(gpu).encode(), pynvml.NVML_UUID_TYPE_ASCII
            ),
        ]
        assert {ctypes.cast(one, ctypes.c_void_p).value for one in found} == {value}
        assert pynvml.nvmlDeviceGetIndex(gpu) == index


def test_what_is_not_there_is_not_found(nvml: World) -> None:
    assert code_of(lambda: handle(5)) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    unknown = "GPU-00000000-0000-4000-8000-000000000000"
    for call in (
        lambda: pynvml.nvmlDeviceGetHandleByUUID(unknown),
        lambda: pynvml.nvmlDeviceGetHandleBySerial("1"),
        lambda: pynvml.nvmlDeviceGetHandleByPciBusId("0000:FF:00.0"),
        lambda: pynvml.nvmlSystemGetProcessName(1),
        lambda: pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle(IN_MIG_MODE), 5),
    ):
        assert code_of(call) == pynvml.NVML_ERROR_NOT_FOUND


def test_a_handle_of_nobody_is_an_invalid_argument(nvml: World) -> None:
    nobody = ctypes.cast(0x1234, pynvml.c_nvmlDevice_t)
    assert code_of(lambda: pynvml.nvmlDeviceGetUUID(nobody)) == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_processes_have_names_and_fit_into_the_memory(nvml: World) -> None:
    gpu = handle(H100)
    memory = pynvml.nvmlDeviceGetMemoryInfo(gpu, version=pynvml.nvmlMemory_v2)
    processes = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)
    names = {pynvml.nvmlSystemGetProcessName(process.pid) for process in processes}
    assert names == {"trainer", "notebook"}
    assert sum(process.usedGpuMemory for process in processes) == memory.used == 10 * GIB
    assert memory.total == memory.used + memory.reserved + memory.free
    old = pynvml.nvmlDeviceGetMemoryInfo(gpu)
    assert old.used == memory.used + memory.reserved
    samples = pynvml.nvmlDeviceGetProcessUtilization(gpu, 0)
    assert sorted(sample.smUtil for sample in samples) == [25, 50]
    assert pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu == 75


def test_a_gpu_without_processes_has_no_samples(nvml: World) -> None:
    gpu = handle(OTHER_H100)
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(gpu) == []
    assert code_of(lambda: pynvml.nvmlDeviceGetProcessUtilization(gpu, 0)) == (
        pynvml.NVML_ERROR_NOT_FOUND
    )


@pytest.mark.parametrize(("version", "size"), [("", 16), ("_v2", 24), ("_v3", 24)])
def test_an_array_that_is_too_small_is_told_what_is_needed(
    nvml: World, version: str, size: int
) -> None:
    call = getattr(pynvml.nvmlLib, f"nvmlDeviceGetComputeRunningProcesses{version}")
    count, room = ctypes.c_uint(1), ctypes.create_string_buffer(b"\xaa" * 3 * size, 3 * size)
    assert call(handle(H100), ctypes.byref(count), room) == pynvml.NVML_ERROR_INSUFFICIENT_SIZE
    assert count.value == 2
    assert room.raw == b"\xaa" * 3 * size
    assert call(handle(H100), ctypes.byref(count), room) == pynvml.NVML_SUCCESS
    assert count.value == 2
    assert room.raw[2 * size :] == b"\xaa" * size


def test_a_string_that_does_not_fit_is_refused(nvml: World) -> None:
    room = ctypes.create_string_buffer(b"\xaa" * 8, 8)
    call = pynvml.nvmlLib.nvmlDeviceGetName
    assert call(handle(H100), room, ctypes.c_uint(8)) == pynvml.NVML_ERROR_INSUFFICIENT_SIZE
    assert room.raw == b"\xaa" * 8


def test_null_pointers_are_invalid_arguments(nvml: World) -> None:
    lib = pynvml.nvmlLib
    invalid = pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert lib.nvmlDeviceGetCount_v2(None) == invalid
    assert lib.nvmlDeviceGetName(handle(0), None, ctypes.c_uint(64)) == invalid
    assert lib.nvmlDeviceGetHandleByUUID(None, ctypes.byref(ctypes.c_void_p())) == invalid
    assert lib.nvmlDeviceGetComputeRunningProcesses_v3(handle(0), None, None) == invalid
    assert lib.nvmlDeviceGetMemoryInfo_v2(handle(0), None) == invalid


@pytest.mark.parametrize("version", [0, 0x01000028, 0x02000029, 0x03000028, 0xFFFFFFFF])
def test_a_version_that_is_not_known_is_refused(nvml: World, version: int) -> None:
    memory = pynvml.c_nvmlMemory_v2_t()
    memory.version = version
    code = pynvml.nvmlLib.nvmlDeviceGetMemoryInfo_v2(handle(0), ctypes.byref(memory))
    assert code == pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH
    assert memory.total == 0


def test_boards_answer_only_what_they_have(nvml: World) -> None:
    missing: list[Callable[[], object]] = [
        lambda: pynvml.nvmlDeviceGetSerial(handle(RTX3090)),
        lambda: pynvml.nvmlDeviceGetEccMode(handle(RTX3090)),
        lambda: pynvml.nvmlDeviceGetMigMode(handle(RTX3090)),
        lambda: pynvml.nvmlDeviceGetRemappedRows(handle(T4)),
        lambda: pynvml.nvmlDeviceGetRetiredPages(handle(H100), 0),
        lambda: pynvml.nvmlDeviceGetTemperatureThreshold(handle(H100), 0),
        lambda: pynvml.nvmlDeviceGetMarginTemperature(handle(T4)),
        lambda: pynvml.nvmlDeviceGetNvLinkState(handle(T4), 0),
        lambda: pynvml.nvmlDeviceGetFanSpeed(handle(H100)),
        lambda: pynvml.nvmlDeviceGetUtilizationRates(handle(IN_MIG_MODE)),
    ]
    assert {code_of(call) for call in missing} == {pynvml.NVML_ERROR_NOT_SUPPORTED}
    assert pynvml.nvmlDeviceGetRetiredPages(handle(T4), 0) == []
    assert pynvml.nvmlDeviceGetTemperatureThreshold(handle(T4), 0) == 96
    assert pynvml.nvmlDeviceGetBrand(handle(RTX3090)) == pynvml.NVML_BRAND_GEFORCE


def test_links_lead_to_switches_and_not_further(nvml: World) -> None:
    for link in range(18):
        assert pynvml.nvmlDeviceGetNvLinkState(handle(H100), link) == 1
        assert pynvml.nvmlDeviceGetNvLinkRemotePciInfo(handle(H100), link).busId
    assert code_of(lambda: pynvml.nvmlDeviceGetNvLinkState(handle(H100), 18)) == (
        pynvml.NVML_ERROR_NOT_SUPPORTED
    )
    level = pynvml.nvmlDeviceGetTopologyCommonAncestor(handle(H100), handle(OTHER_H100))
    near = pynvml.nvmlDeviceGetTopologyNearestGpus(handle(H100), level)
    uuids = {pynvml.nvmlDeviceGetUUID(gpu) for gpu in near}
    assert pynvml.nvmlDeviceGetUUID(handle(OTHER_H100)) in uuids


def test_mig_devices_lead_to_their_gpu_and_instances(nvml: World) -> None:
    gpu = handle(IN_MIG_MODE)
    assert pynvml.nvmlDeviceGetMigMode(gpu) == [1, 1]
    for index, profile in enumerate(("3g.40gb", "2g.20gb", "1g.10gb")):
        mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index)
        assert pynvml.nvmlDeviceGetName(mig).endswith(f" MIG {profile}")
        assert pynvml.nvmlDeviceGetUUID(mig).startswith("MIG-")
        parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(mig)
        assert pynvml.nvmlDeviceGetUUID(parent) == pynvml.nvmlDeviceGetUUID(gpu)
        gi = pynvml.nvmlDeviceGetGpuInstanceById(gpu, pynvml.nvmlDeviceGetGpuInstanceId(mig))
        info = pynvml.nvmlGpuInstanceGetInfo(gi)
        ci = pynvml.nvmlGpuInstanceGetComputeInstanceById(
            gi, pynvml.nvmlDeviceGetComputeInstanceId(mig)
        )
        assert pynvml.nvmlComputeInstanceGetInfo(ci).placement.size == int(profile[0])
        attributes = pynvml.nvmlDeviceGetAttributes(mig)
        assert attributes.gpuInstanceSliceCount == int(profile[0])
        assert attributes.memorySizeMB * 1024**2 == pynvml.nvmlDeviceGetMemoryInfo(mig).total
        assert names_of_profiles(gpu)[info.profileId] == f"MIG {profile}"


def test_gpu_instances_do_not_overlap(nvml: World) -> None:
    gpu = handle(IN_MIG_MODE)
    taken: list[int] = []
    for index in range(3):
        mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index)
        gi = pynvml.nvmlDeviceGetGpuInstanceById(gpu, pynvml.nvmlDeviceGetGpuInstanceId(mig))
        placement = pynvml.nvmlGpuInstanceGetInfo(gi).placement
        taken.extend(range(placement.start, placement.start + placement.size))
    assert len(taken) == len(set(taken))
    assert set(taken) <= set(range(8))


def test_a_process_on_a_mig_device_is_there_and_on_no_other(nvml: World) -> None:
    gpu = handle(IN_MIG_MODE)
    (listed,) = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)
    migs = [pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index) for index in range(3)]
    counts = [len(pynvml.nvmlDeviceGetComputeRunningProcesses(mig)) for mig in migs]
    assert counts == [0, 1, 0]
    assert listed.gpuInstanceId == pynvml.nvmlDeviceGetGpuInstanceId(migs[1])


def test_field_values_have_codes_of_their_own(nvml: World) -> None:
    ids = [230, 193, 999, pynvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL]
    values = pynvml.nvmlDeviceGetFieldValues(handle(H100), ids)
    assert [value.nvmlReturn for value in values] == [0, 0, pynvml.NVML_ERROR_NOT_SUPPORTED, 0]
    assert values[1].value.siVal == -8
    nvml.let("{kind: xid, xid: 95}", H100)
    values = pynvml.nvmlDeviceGetFieldValues(handle(H100), ids)
    assert [values[0].value.uiVal, values[3].value.ullVal] == [1, 1]


def test_functions_that_are_not_simulated_say_so(nvml: World) -> None:
    assert code_of(lambda: pynvml.nvmlDeviceGetBridgeChipInfo(handle(0))) == (
        pynvml.NVML_ERROR_NOT_SUPPORTED
    )


def test_nothing_is_answered_before_init_and_after_shutdown(nvml: World) -> None:
    gpu = handle(0)
    pynvml.nvmlInit()
    pynvml.nvmlShutdown()
    assert pynvml.nvmlDeviceGetCount() == 5
    pynvml.nvmlShutdown()
    calls: list[Callable[[], object]] = [
        pynvml.nvmlDeviceGetCount,
        lambda: pynvml.nvmlDeviceGetUUID(gpu),
        lambda: pynvml.nvmlDeviceGetBridgeChipInfo(gpu),
        pynvml.nvmlShutdown,
    ]
    assert {code_of(call) for call in calls} == {pynvml.NVML_ERROR_UNINITIALIZED}
    assert pynvml.nvmlErrorString(pynvml.NVML_ERROR_GPU_IS_LOST)
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetUUID(gpu)


def test_without_a_node_there_is_no_driver(nvml: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml.nvmlShutdown()
    for path in ("", "/nowhere/nvml.sock", "/" + "long" * 100):
        monkeypatch.setenv("GPUPLUGIN_SIM_NVML", path)
        assert code_of(pynvml.nvmlInit) == pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    monkeypatch.delenv("GPUPLUGIN_SIM_NVML")
    assert code_of(pynvml.nvmlInit) == pynvml.NVML_ERROR_DRIVER_NOT_LOADED
