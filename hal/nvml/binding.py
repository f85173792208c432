"""`NvmlApi` on top of the `pynvml` module: the only place that imports it.

The module is untyped and raises its own exceptions; both end here.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, ClassVar, ParamSpec, TypeVar

import pynvml

from hal.nvml.api import (
    NO_INSTANCE,
    Clock,
    Code,
    EccKind,
    EventData,
    EventSet,
    FabricInfo,
    Field,
    Handle,
    Memory,
    NvmlError,
    Process,
    ProcessSample,
    RemappedRows,
    has_long_process_entries,
)
from hal.types import MigAttributes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hal.nvml.api import NvmlApi

_P = ParamSpec("_P")
_R = TypeVar("_R")

_NVML_SUCCESS = 0
_UNKNOWN_BYTES = (1 << 64) - 1


def _translated(call: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let `call` raise `NvmlError` in place of the binding's own exceptions."""

    @functools.wraps(call)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return call(*args, **kwargs)
        except pynvml.NVMLError as err:
            raise NvmlError(int(err.value), str(err)) from err
        except pynvml.NVMLLibraryMismatchError as err:
            # The binding's error for: the driver lacks this version of the function.
            raise NvmlError(Code.FUNCTION_NOT_FOUND, str(err)) from err
        except UnicodeDecodeError as err:
            raise NvmlError(Code.UNKNOWN, f"NVML returned text that is not UTF-8: {err}") from err

    return wrapper


def _all_translated(api: type[_R]) -> type[_R]:
    for name, call in list(vars(api).items()):
        if callable(call):
            setattr(api, name, _translated(call))
    return api


def _address(pointer: ctypes.c_void_p) -> int:
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0


def _device(handle: Handle) -> object:
    device: object = ctypes.cast(handle, pynvml.c_nvmlDevice_t)
    return device


def _event_set(events: EventSet) -> object:
    event_set: object = ctypes.cast(events, pynvml.c_nvmlEventSet_t)
    return event_set


def _text(value: str | bytes) -> str:
    # Some versions of the binding decode the texts in structures, some do not.
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _decoded(read: Callable[[], object]) -> str:
    """A text for people; bytes that are not UTF-8 are replaced."""
    try:
        return str(read())
    except UnicodeDecodeError as err:
        return bytes(err.object).decode("utf-8", "replace")


def _first_event_wait(events: object, timeout_ms: int) -> pynvml.c_nvmlEventData_t:
    """The wait of drivers before 450, which know of no instances; the binding has no call for it.

    Without it a node with such a driver could not be watched at all.
    """
    data = pynvml.c_nvmlEventData_t()
    function = pynvml._nvmlGetFunctionPointer("nvmlEventSetWait")  # noqa: SLF001 - see above
    pynvml._nvmlCheckReturn(  # noqa: SLF001 - as above
        function(events, ctypes.byref(data), ctypes.c_uint(timeout_ms))
    )
    data.gpuInstanceId = data.computeInstanceId = NO_INSTANCE
    return data


class _LongProcessInfo(ctypes.Structure):
    """An entry of drivers 535.43 to 535.86."""

    _fields_: ClassVar = [
        *pynvml.c_nvmlProcessInfo_v2_t._fields_,
        ("usedGpuCcProtectedMemory", ctypes.c_ulonglong),
    ]


def _processes(name: str, device: object, *, long_entries: bool) -> list[Process]:
    """By the newest call that the driver has; those before 510 lack version 3."""
    try:
        found = (
            _long_entries(f"{name}_v3", device)
            if long_entries
            else getattr(pynvml, f"{name}_v3")(device)
        )
    except pynvml.NVMLError_FunctionNotFound:
        found = getattr(pynvml, f"{name}_v2")(device)
    return [
        Process(
            pid=int(process.pid),
            memory=_known_bytes(process.usedGpuMemory),
            gpu_instance=int(process.gpuInstanceId),
            compute_instance=int(process.computeInstanceId),
        )
        for process in found
    ]


def _known_bytes(size_bytes: int | None) -> int | None:
    """None for all bits set, which the binding replaces in entries that it reads itself."""
    return None if size_bytes in (None, _UNKNOWN_BYTES) else int(size_bytes or 0)


def _long_entries(name: str, device: object) -> Sequence[_LongProcessInfo]:
    """The binding reads shorter entries, and so garbage from the second one on."""
    function = pynvml._nvmlGetFunctionPointer(name)  # noqa: SLF001 - see above
    count = ctypes.c_uint(0)
    code = function(device, ctypes.byref(count), None)
    if code == Code.INSUFFICIENT_SIZE:
        count.value = 2 * count.value + 5
        entries = (_LongProcessInfo * count.value)()
        code = function(device, ctypes.byref(count), entries)
    else:
        entries = (_LongProcessInfo * 0)()
    pynvml._nvmlCheckReturn(code)  # noqa: SLF001 - as above
    return entries[: count.value]


def _integer(value: pynvml.c_nvmlValue_t, kind: int) -> int:
    members = {
        pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
        pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
        pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
        pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
        pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
    }
    return int(getattr(value, members.get(kind, "uiVal")))


@_all_translated
class _PynvmlApi:
    """Implements `NvmlApi`, which documents the methods."""

    _long_entries: bool | None = None
    """Whether this driver has them; None until it was asked."""

    def init(self) -> None:
        pynvml.nvmlInit()
        self._long_entries = None

    def shutdown(self) -> None:
        pynvml.nvmlShutdown()

    def driver_version(self) -> str:
        return _decoded(pynvml.nvmlSystemGetDriverVersion)

    def cuda_version(self) -> int:
        return int(pynvml.nvmlSystemGetCudaDriverVersion_v2())

    def process_name(self, pid: int) -> str:
        return _decoded(lambda: pynvml.nvmlSystemGetProcessName(pid))

    def device_count(self) -> int:
        return int(pynvml.nvmlDeviceGetCount())

    def handle_by_index(self, index: int) -> Handle:
        return Handle(_address(pynvml.nvmlDeviceGetHandleByIndex(index)))

    def uuid(self, device: Handle) -> str:
        return str(pynvml.nvmlDeviceGetUUID(_device(device)))

    def name(self, device: Handle) -> str:
        return _decoded(lambda: pynvml.nvmlDeviceGetName(_device(device)))

    def minor(self, device: Handle) -> int:
        return int(pynvml.nvmlDeviceGetMinorNumber(_device(device)))

    def pci_bus_id(self, device: Handle) -> str:
        return _text(pynvml.nvmlDeviceGetPciInfo(_device(device)).busId)

    def memory(self, device: Handle) -> Memory:
        try:
            info = pynvml.nvmlDeviceGetMemoryInfo(_device(device), version=pynvml.nvmlMemory_v2)
        except (
            pynvml.NVMLError_FunctionNotFound,
            pynvml.NVMLError_ArgumentVersionMismatch,
            pynvml.NVMLError_NotSupported,
        ):
            info = pynvml.nvmlDeviceGetMemoryInfo(_device(device))
        return Memory(total=int(info.total), free=int(info.free))

    def compute_capability(self, device: Handle) -> tuple[int, int]:
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(_device(device))
        return int(major), int(minor)

    def compute_mode(self, device: Handle) -> int:
        return int(pynvml.nvmlDeviceGetComputeMode(_device(device)))

    def mig_mode(self, device: Handle) -> bool:
        return bool(pynvml.nvmlDeviceGetMigMode(_device(device))[0])

    def max_mig_devices(self, device: Handle) -> int:
        return int(pynvml.nvmlDeviceGetMaxMigDeviceCount(_device(device)))

    def mig_handle(self, device: Handle, index: int) -> Handle:
        mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(_device(device), index)
        return Handle(_address(mig))

    def gpu_instance(self, mig: Handle) -> int:
        return int(pynvml.nvmlDeviceGetGpuInstanceId(_device(mig)))

    def compute_instance(self, mig: Handle) -> int:
        return int(pynvml.nvmlDeviceGetComputeInstanceId(_device(mig)))

    def mig_attributes(self, mig: Handle) -> MigAttributes:
        attributes = pynvml.nvmlDeviceGetAttributes(_device(mig))
        return MigAttributes(
            gpu_slices=int(attributes.gpuInstanceSliceCount),
            compute_slices=int(attributes.computeInstanceSliceCount),
            memory_mib=int(attributes.memorySizeMB),
            multiprocessors=int(attributes.multiprocessorCount),
            copy_engines=int(attributes.sharedCopyEngineCount),
            decoders=int(attributes.sharedDecoderCount),
            encoders=int(attributes.sharedEncoderCount),
            jpeg_engines=int(attributes.sharedJpegCount),
            ofa_engines=int(attributes.sharedOfaCount),
        )

    def event_set_create(self) -> EventSet:
        return EventSet(_address(pynvml.nvmlEventSetCreate()))

    def event_set_free(self, events: EventSet) -> None:
        pynvml.nvmlEventSetFree(_event_set(events))

    def event_types(self, device: Handle) -> int:
        return int(pynvml.nvmlDeviceGetSupportedEventTypes(_device(device)))

    def event_register(self, device: Handle, types: int, events: EventSet) -> None:
        pynvml.nvmlDeviceRegisterEvents(_device(device), types, _event_set(events))

    def event_wait(self, events: EventSet, timeout_ms: int) -> EventData:
        try:
            data = pynvml.nvmlEventSetWait_v2(_event_set(events), timeout_ms)
        except pynvml.NVMLError_FunctionNotFound:
            data = _first_event_wait(_event_set(events), timeout_ms)
        return EventData(
            device=Handle(_address(data.device)),
            type=int(data.eventType),
            data=int(data.eventData),
            gpu_instance=int(data.gpuInstanceId),
            compute_instance=int(data.computeInstanceId),
        )

    def field(self, device: Handle, field: Field) -> int:
        value = pynvml.nvmlDeviceGetFieldValues(_device(device), [int(field)])[0]
        if value.nvmlReturn != _NVML_SUCCESS:
            raise pynvml.NVMLError(value.nvmlReturn)
        return _integer(value.value, int(value.valueType))

    def remapped_rows(self, device: Handle) -> RemappedRows:
        rows = pynvml.nvmlDeviceGetRemappedRows(_device(device))
        return RemappedRows(pending=bool(rows[2]), failure=bool(rows[3]))

    def volatile_ecc(self, device: Handle, kind: EccKind) -> int:
        counter = pynvml.NVML_VOLATILE_ECC
        return int(pynvml.nvmlDeviceGetTotalEccErrors(_device(device), int(kind), counter))

    def fabric(self, device: Handle) -> FabricInfo:
        info = pynvml.c_nvmlGpuFabricInfo_v2_t()
        try:
            pynvml.nvmlDeviceGetGpuFabricInfoV(_device(device), ctypes.byref(info))
        except (pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_ArgumentVersionMismatch):
            # Drivers before 545.
            info = pynvml.c_nvmlGpuFabricInfo_t()
            pynvml.nvmlDeviceGetGpuFabricInfo(_device(device), ctypes.byref(info))
        return FabricInfo(int(info.state), int(info.status))

    def is_confidential(self) -> bool:
        return bool(pynvml.nvmlSystemGetConfComputeState().ccFeature)

    def is_confidential_ready(self) -> bool:
        return bool(pynvml.nvmlSystemGetConfComputeGpusReadyState())

    def utilization_percent(self, device: Handle) -> int:
        return int(pynvml.nvmlDeviceGetUtilizationRates(_device(device)).gpu)

    def temperature_c(self, device: Handle) -> int:
        return int(pynvml.nvmlDeviceGetTemperature(_device(device), pynvml.NVML_TEMPERATURE_GPU))

    def shutdown_temperature_c(self, device: Handle) -> int:
        kind = pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN
        return int(pynvml.nvmlDeviceGetTemperatureThreshold(_device(device), kind))

    def temperature_margin_c(self, device: Handle) -> int:
        return int(pynvml.nvmlDeviceGetMarginTemperature(_device(device)))

    def power_mw(self, device: Handle) -> int:
        return int(pynvml.nvmlDeviceGetPowerUsage(_device(device)))

    def power_limit_mw(self, device: Handle) -> int:
        return int(pynvml.nvmlDeviceGetEnforcedPowerLimit(_device(device)))

    def energy_mj(self, device: Handle) -> int:
        return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(_device(device)))

    def clock_mhz(self, device: Handle, clock: Clock) -> int:
        return int(pynvml.nvmlDeviceGetClockInfo(_device(device), int(clock)))

    def clock_reasons(self, device: Handle) -> int:
        try:
            return int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(_device(device)))
        except pynvml.NVMLError_FunctionNotFound:
            # Drivers before 535 know the call by its old name only.
            return int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(_device(device)))

    def processes(self, device: Handle) -> list[Process]:
        return self._running("nvmlDeviceGetComputeRunningProcesses", device)

    def graphics_processes(self, device: Handle) -> list[Process]:
        return self._running("nvmlDeviceGetGraphicsRunningProcesses", device)

    def _running(self, name: str, device: Handle) -> list[Process]:
        if self._long_entries is None:
            try:
                self._long_entries = has_long_process_entries(self.driver_version())
            except NvmlError:
                self._long_entries = False
        return _processes(name, _device(device), long_entries=self._long_entries)

    def process_samples(self, device: Handle) -> list[ProcessSample]:
        try:
            samples = pynvml.nvmlDeviceGetProcessUtilization(_device(device), 0)
        except pynvml.NVMLError as err:
            # Having no samples is an error to the driver, and success is one to the binding.
            if err.value in (_NVML_SUCCESS, Code.NOT_FOUND):
                return []
            raise
        return [
            ProcessSample(int(sample.pid), int(sample.timeStamp), int(sample.smUtil))
            for sample in samples
        ]

    def topology(self, one: Handle, other: Handle) -> int:
        return int(pynvml.nvmlDeviceGetTopologyCommonAncestor(_device(one), _device(other)))

    def nvlink_active(self, device: Handle, link: int) -> bool:
        return bool(pynvml.nvmlDeviceGetNvLinkState(_device(device), link))

    def nvlink_remote(self, device: Handle, link: int) -> str:
        return _text(pynvml.nvmlDeviceGetNvLinkRemotePciInfo(_device(device), link).busId)


def pynvml_api() -> NvmlApi:
    """NVML by way of nvidia-ml-py. `init` is the first call that needs the library."""
    return _PynvmlApi()
