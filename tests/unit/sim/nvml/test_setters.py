"""What programs can change through the library: power limits, MIG modes and instances."""

from __future__ import annotations

import ctypes
from functools import partial

import pynvml
import pytest

from tests.unit.sim.nvml.conftest import World, code_of
from tests.unit.sim.nvml.test_answers import H100, IN_MIG_MODE, OTHER_H100, RTX3090, T4, handle

IN_USE = pynvml.NVML_ERROR_IN_USE
NO_ROOM = pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES
ONE_G, TWO_G, THREE_G, SEVEN_G = 19, 14, 9, 0
"""Profile ids of 1g.10gb, 2g.20gb, 3g.40gb and 7g.80gb on an H100."""


def profiles_of_devices(gpu: ctypes.c_void_p) -> dict[int, str]:
    """The profiles of the GPU's MIG devices by GPU instance id."""
    found: dict[int, str] = {}
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index)
        except pynvml.NVMLError_NotFound:
            continue
        name = pynvml.nvmlDeviceGetName(mig).rpartition(" ")[2]
        found[pynvml.nvmlDeviceGetGpuInstanceId(mig)] = name
    return found


def create(gpu: ctypes.c_void_p, profile: int) -> pynvml.c_nvmlGpuInstance_t:
    """A GPU instance with its compute instance."""
    instance = pynvml.nvmlDeviceCreateGpuInstance(gpu, profile)
    slices = {ONE_G: 0, TWO_G: 1, THREE_G: 2, SEVEN_G: 4}
    pynvml.nvmlGpuInstanceCreateComputeInstance(instance, slices[profile])
    return instance


def clear(gpu: ctypes.c_void_p) -> None:
    """Destroy all instances without processes."""
    for number in range(1, 8):
        try:
            instance = pynvml.nvmlDeviceGetGpuInstanceById(gpu, number)
            pynvml.nvmlComputeInstanceDestroy(
                pynvml.nvmlGpuInstanceGetComputeInstanceById(instance, 0)
            )
            pynvml.nvmlGpuInstanceDestroy(instance)
        except pynvml.NVMLError_NotFound:
            continue


def test_mig_mode_is_switched_at_once_without_processes(nvml: World) -> None:
    gpu = handle(OTHER_H100)
    assert pynvml.nvmlDeviceGetMigMode(gpu) == [0, 0]
    assert pynvml.nvmlDeviceSetMigMode(gpu, 1) == 0
    assert pynvml.nvmlDeviceGetMigMode(gpu) == [1, 1]
    assert profiles_of_devices(gpu) == {}
    create(gpu, SEVEN_G)
    assert profiles_of_devices(gpu) == {1: "7g.80gb"}
    assert pynvml.nvmlDeviceSetMigMode(gpu, 0) == 0
    assert pynvml.nvmlDeviceGetMigMode(gpu) == [0, 0]


def test_mig_mode_beside_processes_waits_for_a_reset(nvml: World) -> None:
    gpu = handle(H100)
    assert pynvml.nvmlDeviceSetMigMode(gpu, 1) == IN_USE
    assert pynvml.nvmlDeviceGetMigMode(gpu) == [0, 1]
    nvml.let("{kind: recover}", H100)
    assert pynvml.nvmlDeviceGetMigMode(gpu) == [1, 1]


def test_mig_mode_is_for_boards_that_can_be_partitioned(nvml: World) -> None:
    for index in (RTX3090, T4):
        assert code_of(partial(pynvml.nvmlDeviceSetMigMode, handle(index), 1)) == (
            pynvml.NVML_ERROR_NOT_SUPPORTED
        )


def test_an_instance_without_compute_instance_is_no_mig_device(nvml: World) -> None:
    gpu = handle(OTHER_H100)
    pynvml.nvmlDeviceSetMigMode(gpu, 1)
    instance = pynvml.nvmlDeviceCreateGpuInstance(gpu, THREE_G)
    info = pynvml.nvmlGpuInstanceGetInfo(instance)
    assert (info.profileId, info.placement.start, info.placement.size) == (THREE_G, 0, 4)
    assert profiles_of_devices(gpu) == {}
    assert pynvml.nvmlGpuInstanceGetComputeInstanceRemainingCapacity(instance, 2) == 1
    pynvml.nvmlGpuInstanceCreateComputeInstance(instance, 2)
    assert pynvml.nvmlGpuInstanceGetComputeInstanceRemainingCapacity(instance, 2) == 0
    assert profiles_of_devices(gpu) == {info.id: "3g.40gb"}
    assert code_of(lambda: pynvml.nvmlGpuInstanceCreateComputeInstance(instance, 2)) == NO_ROOM


def test_instances_fill_the_gpu_and_no_more(nvml: World) -> None:
    gpu = handle(OTHER_H100)
    pynvml.nvmlDeviceSetMigMode(gpu, 1)
    for left in range(7, 0, -1):
        assert pynvml.nvmlDeviceGetGpuInstanceRemainingCapacity(gpu, ONE_G) == left
        create(gpu, ONE_G)
    assert code_of(lambda: pynvml.nvmlDeviceCreateGpuInstance(gpu, ONE_G)) == NO_ROOM
    assert len(profiles_of_devices(gpu)) == 7
    clear(gpu)
    create(gpu, SEVEN_G)
    assert code_of(lambda: pynvml.nvmlDeviceCreateGpuInstance(gpu, ONE_G)) == NO_ROOM


def test_an_instance_can_be_placed(nvml: World) -> None:
    gpu = handle(OTHER_H100)
    pynvml.nvmlDeviceSetMigMode(gpu, 1)
    at_four = pynvml.c_nvmlGpuInstancePlacement_t(start=4, size=4)

    def place() -> pynvml.c_nvmlGpuInstance_t:
        return pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(gpu, THREE_G, ctypes.byref(at_four))

    info = pynvml.nvmlGpuInstanceGetInfo(place())
    assert (info.placement.start, info.placement.size) == (4, 4)
    assert code_of(place) == NO_ROOM


def test_an_instance_with_a_process_stays(nvml: World) -> None:
    gpu = handle(IN_MIG_MODE)
    before = profiles_of_devices(gpu)
    busy = next(number for number, name in before.items() if name == "2g.20gb")
    instance = pynvml.nvmlDeviceGetGpuInstanceById(gpu, busy)
    compute = pynvml.nvmlGpuInstanceGetComputeInstanceById(instance, 0)
    assert code_of(lambda: pynvml.nvmlComputeInstanceDestroy(compute)) == IN_USE
    assert code_of(lambda: pynvml.nvmlGpuInstanceDestroy(instance)) == IN_USE
    assert profiles_of_devices(gpu) == before


def test_a_destroyed_instance_is_gone_and_the_others_are_as_before(nvml: World) -> None:
    gpu = handle(IN_MIG_MODE)
    (process,) = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)
    instance = pynvml.nvmlDeviceGetGpuInstanceById(gpu, 1)
    pynvml.nvmlComputeInstanceDestroy(pynvml.nvmlGpuInstanceGetComputeInstanceById(instance, 0))
    pynvml.nvmlGpuInstanceDestroy(instance)
    assert code_of(lambda: pynvml.nvmlGpuInstanceGetInfo(instance)) == (
        pynvml.NVML_ERROR_INVALID_ARGUMENT
    )
    assert profiles_of_devices(gpu) == {2: "2g.20gb", 3: "1g.10gb"}
    (still,) = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)
    assert still.pid == process.pid
    create(gpu, THREE_G)
    assert profiles_of_devices(gpu) == {1: "3g.40gb", 2: "2g.20gb", 3: "1g.10gb"}


def test_instances_tell_their_engines(nvml: World) -> None:
    gpu = handle(IN_MIG_MODE)
    mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)
    attributes = pynvml.nvmlDeviceGetAttributes(mig)
    assert [
        attributes.sharedCopyEngineCount,
        attributes.sharedDecoderCount,
        attributes.sharedJpegCount,
        attributes.sharedOfaCount,
    ] == [3, 3, 3, 0]
    info = pynvml.nvmlDeviceGetGpuInstanceProfileInfoById(gpu, SEVEN_G)
    assert (info.decoderCount, info.jpegCount, info.ofaCount) == (7, 7, 1)


@pytest.mark.parametrize("scope", [1, 3])
def test_power_fields_are_those_of_their_scope(nvml: World, scope: int) -> None:
    average, instant = pynvml.NVML_FI_DEV_POWER_AVERAGE, pynvml.NVML_FI_DEV_POWER_INSTANT
    asked = [(average, 0), (average, 2), (instant, 2), (average, scope), (average, 9)]
    values = pynvml.nvmlDeviceGetFieldValues(handle(H100), asked)
    unsupported, invalid = pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_INVALID_ARGUMENT
    codes = [value.nvmlReturn for value in values]
    assert codes == [0, 0, unsupported, unsupported, invalid]
    assert values[1].value.ullVal < values[0].value.ullVal / 2
    (board,) = pynvml.nvmlDeviceGetFieldValues(handle(T4), [(average, 2)])
    assert board.nvmlReturn == unsupported


def test_a_power_limit_lowers_clocks_and_power_until_a_reset(nvml: World) -> None:
    gpu = handle(H100)
    before_mw = pynvml.nvmlDeviceGetPowerUsage(gpu)
    assert pynvml.nvmlDeviceGetPowerManagementLimit(gpu) == 700_000
    pynvml.nvmlDeviceSetPowerManagementLimit(gpu, 300_000)
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu) == 300_000
    assert pynvml.nvmlDeviceGetPowerManagementDefaultLimit(gpu) == 700_000
    (field,) = pynvml.nvmlDeviceGetFieldValues(gpu, [pynvml.NVML_FI_DEV_POWER_CURRENT_LIMIT])
    assert field.value.ullVal == 300_000
    assert pynvml.nvmlDeviceGetPowerUsage(gpu) < min(before_mw, 300_000)
    assert pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM) < 1980
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu) == 0x04
    nvml.let("{kind: recover}", H100)
    assert pynvml.nvmlDeviceGetPowerManagementLimit(gpu) == 700_000


def test_a_power_limit_is_one_that_the_board_can_have(nvml: World) -> None:
    gpu = handle(H100)
    for limit_mw in (199_000, 701_000):
        assert code_of(partial(pynvml.nvmlDeviceSetPowerManagementLimit, gpu, limit_mw)) == (
            pynvml.NVML_ERROR_INVALID_ARGUMENT
        )
    pynvml.nvmlDeviceSetPowerManagementLimit_v2(gpu, pynvml.NVML_POWER_SCOPE_MODULE, 300_000)
    assert pynvml.nvmlDeviceGetPowerManagementLimit(gpu) == 700_000
    pynvml.nvmlDeviceSetPowerManagementLimit_v2(gpu, pynvml.NVML_POWER_SCOPE_GPU, 300_000)
    assert pynvml.nvmlDeviceGetPowerManagementLimit(gpu) == 300_000


def test_addressing_mode_and_pcie_throughput(nvml: World) -> None:
    mode = pynvml.nvmlDeviceGetAddressingMode(handle(H100))
    assert mode == pynvml.NVML_DEVICE_ADDRESSING_MODE_HMM
    assert pynvml.nvmlDeviceGetPcieThroughput(handle(H100), pynvml.NVML_PCIE_UTIL_TX_BYTES) == 0
    assert code_of(lambda: pynvml.nvmlDeviceGetPcieThroughput(handle(H100), 2)) == (
        pynvml.NVML_ERROR_INVALID_ARGUMENT
    )


def gpm(first: object, second: object, *metrics: int) -> list[tuple[int, float, bytes | None]]:
    """Code, value and unit of each metric."""
    request = pynvml.c_nvmlGpmMetricsGet_t()
    request.version, request.numMetrics = pynvml.NVML_GPM_METRICS_GET_VERSION, len(metrics)
    request.sample1, request.sample2 = first, second
    for at, metric in enumerate(metrics):
        request.metrics[at].metricId = metric
    pynvml.nvmlGpmMetricsGet(request)
    return [
        (one.nvmlReturn, one.value, one.metricInfo.unit) for one in request.metrics[: len(metrics)]
    ]


def test_gpm_is_for_hopper_and_later(nvml: World) -> None:
    support = [pynvml.nvmlGpmQueryDeviceSupport(handle(index)) for index in (H100, RTX3090, T4)]
    assert [one.isSupportedDevice for one in support] == [1, 0, 0]
    sample = pynvml.nvmlGpmSampleAlloc()
    assert code_of(lambda: pynvml.nvmlGpmSampleGet(handle(T4), sample)) == (
        pynvml.NVML_ERROR_NOT_SUPPORTED
    )


def test_gpm_metrics_between_two_samples(nvml: World) -> None:
    first, second = pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc()
    pynvml.nvmlGpmSampleGet(handle(H100), first)
    assert code_of(lambda: gpm(first, second, 1)) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    pynvml.nvmlGpmSampleGet(handle(H100), second)
    graphics, sms, pcie, tensor = gpm(
        first,
        second,
        pynvml.NVML_GPM_METRIC_GRAPHICS_UTIL,
        pynvml.NVML_GPM_METRIC_SM_UTIL,
        pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC,
        pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL,
    )
    assert graphics == sms
    assert (graphics[0], round(graphics[1], 3), graphics[2]) == (0, 75.0, b"%")
    assert pcie == (0, 0.0, b"MiB/s")
    assert tensor[0] == pynvml.NVML_ERROR_NOT_SUPPORTED
    pynvml.nvmlGpmSampleFree(first)
    assert code_of(lambda: pynvml.nvmlGpmSampleGet(handle(H100), first)) == (
        pynvml.NVML_ERROR_INVALID_ARGUMENT
    )


def test_gpm_samples_of_a_mig_device_and_of_its_gpu_are_not_compared(nvml: World) -> None:
    whole, part = pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc()
    pynvml.nvmlGpmSampleGet(handle(IN_MIG_MODE), whole)
    pynvml.nvmlGpmMigSampleGet(handle(IN_MIG_MODE), 2, part)
    assert code_of(lambda: gpm(whole, part, 1)) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert gpm(part, part, 1)[0][0] == 0
    assert code_of(lambda: pynvml.nvmlGpmMigSampleGet(handle(IN_MIG_MODE), 7, part)) == (
        pynvml.NVML_ERROR_INVALID_ARGUMENT
    )
