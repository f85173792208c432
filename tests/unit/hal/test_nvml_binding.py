"""The binding to pynvml, on a stand-in for the C library that fills in pynvml's own structures."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import pynvml
import pytest

from hal.errors import (
    DriverNotFound,
    DriverUnavailable,
    GpuLost,
    HalError,
    NotSupported,
)
from hal.nvml.api import (
    NO_INSTANCE,
    Clock,
    Code,
    EccKind,
    EventData,
    EventSet,
    EventType,
    Field,
    Handle,
    Memory,
    NvmlError,
    Process,
    ProcessSample,
    RemappedRows,
)
from hal.nvml.binding import pynvml_api
from hal.nvml.failures import hal_error
from hal.types import MigAttributes

if TYPE_CHECKING:
    from collections.abc import Callable

    from hal.nvml.api import NvmlApi

GPU = Handle(0x7F00_0000_1000)
OTHER = Handle(0x7F00_0000_2000)


class CLibrary:
    """Functions by their C names; those that were not given are not in the library."""


def give(function: Callable[..., int | None]) -> Callable[..., int]:
    """`function` as a C function: by-reference arguments unpacked, success unless it says not."""

    def c_function(*args: Any) -> int:
        # Not a type: ctypes does not name the one that byref() returns.
        return function(*(getattr(arg, "_obj", arg) for arg in args)) or 0

    return c_function


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> CLibrary:
    library = CLibrary()
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return library


@pytest.fixture
def api(library: CLibrary) -> NvmlApi:
    return pynvml_api()


def install(library: CLibrary, **functions: Callable[..., int | None]) -> None:
    for name, function in functions.items():
        setattr(library, name, give(function))


def address(pointer: Any) -> int | None:
    return ctypes.cast(pointer, ctypes.c_void_p).value


def point(pointer: Any, to: int) -> None:
    target = type(pointer)._type_
    pointer.contents = target.from_address(to)


def number(value: Any) -> int:
    return int(getattr(value, "value", value))


@pytest.mark.parametrize(
    ("name", "call", "value"),
    [
        ("nvmlDeviceGetMinorNumber", lambda api: api.minor(GPU), 3),
        ("nvmlDeviceGetComputeMode", lambda api: api.compute_mode(GPU), 3),
        ("nvmlDeviceGetMaxMigDeviceCount", lambda api: api.max_mig_devices(GPU), 7),
        ("nvmlDeviceGetGpuInstanceId", lambda api: api.gpu_instance(GPU), 9),
        ("nvmlDeviceGetComputeInstanceId", lambda api: api.compute_instance(GPU), 1),
        ("nvmlDeviceGetSupportedEventTypes", lambda api: api.event_types(GPU), 0x1FF),
        ("nvmlDeviceGetPowerUsage", lambda api: api.power_mw(GPU), 70_000),
        ("nvmlDeviceGetEnforcedPowerLimit", lambda api: api.power_limit_mw(GPU), 700_000),
        ("nvmlDeviceGetTotalEnergyConsumption", lambda api: api.energy_mj(GPU), 1_234_000),
        ("nvmlDeviceGetCurrentClocksEventReasons", lambda api: api.clock_reasons(GPU), 0x24),
        ("nvmlDeviceGetCurrentClocksThrottleReasons", lambda api: api.clock_reasons(GPU), 0x24),
        ("nvmlDeviceGetTemperature", lambda api: api.temperature_c(GPU), 66),
        ("nvmlDeviceGetClockInfo", lambda api: api.clock_mhz(GPU, Clock.MEMORY), 2619),
        (
            "nvmlDeviceGetTotalEccErrors",
            lambda api: api.volatile_ecc(GPU, EccKind.UNCORRECTED),
            2**40,
        ),
        ("nvmlDeviceGetTopologyCommonAncestor", lambda api: api.topology(GPU, OTHER), 30),
        ("nvmlDeviceGetNvLinkState", lambda api: api.nvlink_active(GPU, 3), 1),
    ],
)
def test_single_numbers(
    api: NvmlApi, library: CLibrary, name: str, call: Callable[[NvmlApi], int], value: int
) -> None:
    seen: list[int | None] = []

    def function(device: Any, *rest: Any) -> None:
        seen.append(address(device))
        rest[-1].value = value

    install(library, **{name: function})
    assert call(api) == value
    assert seen == [GPU]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("nvmlDeviceGetUUID", lambda api: api.uuid(GPU)),
        ("nvmlDeviceGetName", lambda api: api.name(GPU)),
        ("nvmlSystemGetDriverVersion", lambda api: api.driver_version()),
        ("nvmlSystemGetProcessName", lambda api: api.process_name(42)),
    ],
)
def test_texts(api: NvmlApi, library: CLibrary, name: str, call: Callable[[NvmlApi], str]) -> None:
    def function(*args: Any) -> None:
        args[-2].value = text

    install(library, **{name: function})
    text = b"GPU-a"
    assert call(api) == "GPU-a"
    text = b"\xf8\x8aA"
    if name == "nvmlDeviceGetUUID":
        with pytest.raises(NvmlError, match="not UTF-8"):
            call(api)
    else:
        assert call(api) == "\ufffd\ufffdA"


def test_connecting_and_handles(api: NvmlApi, library: CLibrary) -> None:
    calls: list[str] = []

    def count(value: Any) -> None:
        value.value = 2

    def by_index(index: Any, handle: Any) -> None:
        point(handle, (GPU, OTHER)[number(index)])

    def mig_handle(device: Any, index: Any, handle: Any) -> int | None:
        if number(index) != 1:
            return Code.NOT_FOUND
        assert address(device) == GPU
        point(handle, OTHER)
        return None

    def mig_mode(device: Any, current: Any, pending: Any) -> None:
        current.value, pending.value = 0, 1

    install(
        library,
        nvmlInitWithFlags=lambda _flags: calls.append("init"),
        nvmlShutdown=lambda: calls.append("shutdown"),
        nvmlDeviceGetCount_v2=count,
        nvmlDeviceGetHandleByIndex_v2=by_index,
        nvmlDeviceGetMigDeviceHandleByIndex=mig_handle,
        nvmlDeviceGetMigMode=mig_mode,
    )
    api.init()
    assert api.device_count() == 2
    assert [api.handle_by_index(index) for index in range(2)] == [GPU, OTHER]
    assert api.mig_mode(GPU) is False
    assert api.mig_handle(GPU, 1) == OTHER
    with pytest.raises(NvmlError) as caught:
        api.mig_handle(GPU, 0)
    assert caught.value.code == Code.NOT_FOUND
    api.shutdown()
    assert calls == ["init", "shutdown"]


def test_structures(api: NvmlApi, library: CLibrary) -> None:
    def memory_v2(device: Any, memory: Any) -> None:
        memory.total, memory.reserved, memory.used, memory.free = 100, 10, 20, 70

    def pci(device: Any, *rest: Any) -> None:
        rest[-1].busId = b"00000000:07:00.0"

    def capability(device: Any, major: Any, minor: Any) -> None:
        major.value, minor.value = 9, 0

    def attributes(device: Any, value: Any) -> None:
        value.gpuInstanceSliceCount, value.computeInstanceSliceCount = 3, 1
        value.memorySizeMB, value.multiprocessorCount = 40320, 60
        value.sharedCopyEngineCount, value.sharedDecoderCount = 3, 2
        value.sharedEncoderCount, value.sharedJpegCount, value.sharedOfaCount = 6, 4, 5

    def cuda(value: Any) -> None:
        value.value = 12080

    def rows(device: Any, corrected: Any, uncorrected: Any, pending: Any, failure: Any) -> None:
        corrected.value, uncorrected.value, pending.value, failure.value = 4, 2, 1, 0

    def utilization(device: Any, value: Any) -> None:
        value.gpu, value.memory = 87, 12

    install(
        library,
        nvmlDeviceGetMemoryInfo_v2=memory_v2,
        nvmlDeviceGetPciInfo_v3=pci,
        nvmlDeviceGetNvLinkRemotePciInfo_v2=pci,
        nvmlDeviceGetCudaComputeCapability=capability,
        nvmlDeviceGetAttributes_v2=attributes,
        nvmlDeviceGetRemappedRows=rows,
        nvmlSystemGetCudaDriverVersion_v2=cuda,
        nvmlDeviceGetUtilizationRates=utilization,
    )
    assert api.memory(GPU) == Memory(total=100, free=70)
    assert api.pci_bus_id(GPU) == api.nvlink_remote(GPU, 3) == "00000000:07:00.0"
    assert api.compute_capability(GPU) == (9, 0)
    assert api.mig_attributes(GPU) == MigAttributes(3, 1, 40320, 60, 3, 2, 6, 4, 5)
    assert api.cuda_version() == 12080
    assert api.remapped_rows(GPU) == RemappedRows(pending=True, failure=False)
    assert api.utilization_percent(GPU) == 87


def test_memory_on_a_driver_that_knows_the_first_version_only(
    api: NvmlApi, library: CLibrary
) -> None:
    def memory(device: Any, value: Any) -> None:
        value.total, value.free = 100, 70

    install(library, nvmlDeviceGetMemoryInfo=memory)
    assert api.memory(GPU) == Memory(total=100, free=70)


def test_fields(api: NvmlApi, library: CLibrary) -> None:
    def fields(device: Any, count: Any, values: Any) -> None:
        assert (number(count), values[0].fieldId) == (1, 230)
        values[0].nvmlReturn = code
        values[0].valueType = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT
        values[0].value.ullVal = 0xFFFF_FFFF_0000_0004
        values[0].value.uiVal = 4

    install(library, nvmlDeviceGetFieldValues=fields)
    code = 0
    assert api.field(GPU, Field.RECOVERY_ACTION) == 4
    code = Code.NOT_SUPPORTED
    with pytest.raises(NvmlError) as caught:
        api.field(GPU, Field.RECOVERY_ACTION)
    assert caught.value.is_unsupported


def test_events(api: NvmlApi, library: CLibrary) -> None:
    registered: list[tuple[int | None, int, int | None]] = []
    freed: list[int | None] = []

    def create(events: Any) -> None:
        point(events, 0x5000)

    def wait(events: Any, data: Any, timeout: Any) -> int | None:
        assert address(events) == 0x5000
        if number(timeout) == 0:
            return Code.TIMEOUT
        data.device = ctypes.cast(OTHER, pynvml.c_nvmlDevice_t)
        data.eventType, data.eventData = 8, 79
        data.gpuInstanceId, data.computeInstanceId = 2, NO_INSTANCE
        return None

    install(
        library,
        nvmlEventSetCreate=create,
        nvmlDeviceRegisterEvents=lambda device, types, events: registered.append(
            (address(device), number(types), address(events))
        ),
        nvmlEventSetWait_v2=wait,
        nvmlEventSetFree=lambda events: freed.append(address(events)),
    )
    events = api.event_set_create()
    assert events == EventSet(0x5000)
    api.event_register(GPU, 0xB, events)
    assert registered == [(GPU, 0xB, events)]
    assert api.event_wait(events, 500) == EventData(OTHER, EventType.XID, 79, 2, NO_INSTANCE)
    with pytest.raises(NvmlError) as caught:
        api.event_wait(events, 0)
    assert caught.value.code == Code.TIMEOUT
    api.event_set_free(events)
    assert freed == [events]


def test_processes(api: NvmlApi, library: CLibrary) -> None:
    def processes(device: Any, count: Any, array: Any) -> int | None:
        if array is None:
            count.value = 2
            return 7
        count.value = 2
        array[0].pid, array[0].usedGpuMemory = 100, 5
        array[1].pid, array[1].usedGpuMemory = 200, 2**64 - 1
        for entry in array[:2]:
            entry.gpuInstanceId = entry.computeInstanceId = NO_INSTANCE
        return None

    install(library, nvmlDeviceGetComputeRunningProcesses_v3=processes)
    assert api.processes(GPU) == [
        Process(100, 5, NO_INSTANCE, NO_INSTANCE),
        Process(200, None, NO_INSTANCE, NO_INSTANCE),
    ]


def test_a_driver_without_the_process_list(api: NvmlApi) -> None:
    with pytest.raises(NvmlError) as caught:
        api.processes(GPU)
    assert caught.value.is_unsupported


@pytest.mark.parametrize(("code", "count"), [(7, 1), (0, 0), (Code.NOT_FOUND, 0)])
def test_process_samples(api: NvmlApi, library: CLibrary, code: int, count: int) -> None:
    def samples(device: Any, array: Any, size: Any, since: Any) -> int | None:
        if array is None:
            size.value = count
            return code
        array[0].pid, array[0].timeStamp, array[0].smUtil = 100, 1_700_000_000_000_000, 55
        return None

    install(library, nvmlDeviceGetProcessUtilization=samples)
    assert api.process_samples(GPU) == [ProcessSample(100, 1_700_000_000_000_000, 55)][:count]


def test_a_call_that_the_driver_lacks(api: NvmlApi) -> None:
    with pytest.raises(NvmlError) as caught:
        api.remapped_rows(GPU)
    assert caught.value.code == Code.FUNCTION_NOT_FOUND


def codes_of_the_binding() -> dict[str, int]:
    prefix = "NVML_ERROR_"
    return {
        name.removeprefix(prefix): value
        for name, value in vars(pynvml).items()
        if name.startswith(prefix)
    }


UNHEARD_OF = hal_error(NvmlError(12345), "Reading the power")


def test_every_code_of_nvml_is_known_by_its_name() -> None:
    known = {code.name: code.value for code in Code}
    assert known.items() >= codes_of_the_binding().items()


@pytest.mark.parametrize("code", sorted(codes_of_the_binding().values()))
def test_every_code_of_nvml_has_an_error_with_a_cure_of_its_own(code: int) -> None:
    mapped = hal_error(NvmlError(code, "words"), "Reading the power", "GPU-a")
    assert mapped.remedy
    assert mapped.remedy != UNHEARD_OF.remedy


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (Code.OPERATING_SYSTEM, "daemon-reload"),
        (Code.UNKNOWN, "daemon-reload"),
        (Code.INSUFFICIENT_POWER, "power cables"),
        (Code.LIB_RM_VERSION_MISMATCH, "restart this program"),
        (Code.NOT_READY, "fabric manager"),
        (Code.CORRUPTED_INFOROM, "replaced"),
    ],
)
def test_the_codes_that_puzzle_most_say_what_to_do(code: Code, words: str) -> None:
    assert words in hal_error(NvmlError(code), "Reading").remedy


def test_a_driver_before_450_is_watched_by_the_first_version_of_the_wait(
    api: NvmlApi, library: CLibrary
) -> None:
    def wait(events: Any, data: Any, timeout: Any) -> int | None:
        if number(timeout) == 0:
            return Code.TIMEOUT
        data.device = ctypes.cast(OTHER, pynvml.c_nvmlDevice_t)
        data.eventType, data.eventData = 8, 79
        return None

    install(library, nvmlEventSetWait=wait)
    event = api.event_wait(EventSet(0x5000), 500)
    assert event == EventData(OTHER, EventType.XID, 79, NO_INSTANCE, NO_INSTANCE)
    with pytest.raises(NvmlError) as caught:
        api.event_wait(EventSet(0x5000), 0)
    assert caught.value.code == Code.TIMEOUT


def test_a_driver_with_the_second_version_of_the_process_list(
    api: NvmlApi, library: CLibrary
) -> None:
    def processes(device: Any, count: Any, array: Any) -> int | None:
        count.value = 1
        if array is None:
            return Code.INSUFFICIENT_SIZE
        array[0].pid, array[0].usedGpuMemory = 100, 5
        array[0].gpuInstanceId, array[0].computeInstanceId = 1, 0
        return None

    install(library, nvmlDeviceGetComputeRunningProcesses_v2=processes)
    assert api.processes(GPU) == [Process(100, 5, 1, 0)]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (Code.UNINITIALIZED, DriverUnavailable),
        (Code.DRIVER_NOT_LOADED, DriverUnavailable),
        (Code.LIB_RM_VERSION_MISMATCH, DriverUnavailable),
        (Code.GPU_IS_LOST, GpuLost),
        (Code.RESET_REQUIRED, GpuLost),
        (Code.GPU_NOT_FOUND, GpuLost),
        (Code.NOT_SUPPORTED, NotSupported),
        (Code.FUNCTION_NOT_FOUND, NotSupported),
        (Code.ARGUMENT_VERSION_MISMATCH, NotSupported),
        (Code.NO_PERMISSION, NotSupported),
        (Code.LIBRARY_NOT_FOUND, DriverNotFound),
        (Code.UNKNOWN, HalError),
        (12345, HalError),
    ],
)
def test_each_code_has_its_error(
    api: NvmlApi, library: CLibrary, code: int, error: type[HalError]
) -> None:
    install(library, nvmlDeviceGetPowerUsage=lambda *_: code)
    with pytest.raises(NvmlError) as caught:
        api.power_mw(GPU)
    assert caught.value.code == code
    mapped = hal_error(caught.value, "Reading the power", "GPU-a")
    assert type(mapped) is error
    assert mapped.remedy
    if error is HalError:
        assert str(caught.value) in mapped.cause
        assert "GPU-a" in mapped.cause
