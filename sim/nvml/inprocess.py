"""`NvmlApi` on a simulated node in the same process: what the library returns, without the library.

With it the NVML backend's own code reads the node, so that a call that fails or returns an odd
value means the same to both backends.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, NoReturn

import pynvml

from hal.nvml.api import (
    Clock,
    Code,
    EventData,
    FabricInfo,
    Handle,
    Memory,
    NvmlError,
    Process,
    ProcessSample,
    RemappedRows,
)
from hal.types import MigAttributes
from sim.nvml.call import Enumerations, Handles, NvmlCall, NvmlFailure, text_of
from sim.nvml.dispatch import FUNCTIONS, responded
from sim.nvml.functions.events import EventSets
from sim.nvml.functions.gpm import GpmSamples
from sim.nvml.pids import ProcessIds

if TYPE_CHECKING:
    from hal.nvml.api import EccKind, EventSet, Field
    from sim.node.node import SimulatedNode
    from sim.nvml.abi import Response

_FUNCTIONS = {function.name: function for function in FUNCTIONS}
_OLDER = frozenset({Code.FUNCTION_NOT_FOUND, Code.ARGUMENT_VERSION_MISMATCH})
_LONGEST_NAME = 256


class InProcessNvml:
    """Implements `NvmlApi`, which documents the methods; its callers hold the node still.

    Events are not read here: the node has them.
    """

    def __init__(self, node: SimulatedNode) -> None:
        self._node = node
        self._handles = Handles()
        self._enumerations = Enumerations()
        self._event_sets = EventSets()
        self._samples = GpmSamples()
        self._pids = ProcessIds()

    def init(self) -> None:
        """Begin a session, in which GPUs keep their indices."""
        self._enumerations.end(0)
        self._enumerations.of(0, self._node)

    def shutdown(self) -> None: ...

    def driver_version(self) -> str:
        return self._text("nvmlSystemGetDriverVersion")

    def cuda_version(self) -> int:
        return self._number("nvmlSystemGetCudaDriverVersion_v2")

    def process_name(self, pid: int) -> str:
        return self._text("nvmlSystemGetProcessName", pid, _LONGEST_NAME)

    def device_count(self) -> int:
        return self._number("nvmlDeviceGetCount_v2")

    def handle_by_index(self, index: int) -> Handle:
        return Handle(self._number("nvmlDeviceGetHandleByIndex_v2", index))

    def handle_of(self, uuid: str) -> Handle:
        """The handle of a GPU without a call for it."""
        return Handle(self._handles.of(("gpu", uuid)))

    def uuid(self, device: Handle) -> str:
        return self._text("nvmlDeviceGetUUID", device=device)

    def name(self, device: Handle) -> str:
        return self._text("nvmlDeviceGetName", device=device)

    def minor(self, device: Handle) -> int:
        return self._number("nvmlDeviceGetMinorNumber", device=device)

    def pci_bus_id(self, device: Handle) -> str:
        info = self._structure("nvmlDeviceGetPciInfo_v3", device=device)
        return _decoded(info.busId)

    def memory(self, device: Handle) -> Memory:
        try:
            info = self._structure(
                "nvmlDeviceGetMemoryInfo_v2", device=device, room=pynvml.c_nvmlMemory_v2_t()
            )
        except NvmlError as error:
            if error.code not in {*_OLDER, Code.NOT_SUPPORTED}:
                raise
            info = self._structure("nvmlDeviceGetMemoryInfo", device=device)
        return Memory(total=int(info.total), free=int(info.free))

    def compute_capability(self, device: Handle) -> tuple[int, int]:
        major, minor = self._numbers("nvmlDeviceGetCudaComputeCapability", device=device)
        return major, minor

    def compute_mode(self, device: Handle) -> int:
        return self._number("nvmlDeviceGetComputeMode", device=device)

    def mig_mode(self, device: Handle) -> bool:
        return bool(self._numbers("nvmlDeviceGetMigMode", device=device)[0])

    def max_mig_devices(self, device: Handle) -> int:
        return self._number("nvmlDeviceGetMaxMigDeviceCount", device=device)

    def mig_handle(self, device: Handle, index: int) -> Handle:
        return Handle(self._number("nvmlDeviceGetMigDeviceHandleByIndex", index, device=device))

    def gpu_instance(self, mig: Handle) -> int:
        return self._number("nvmlDeviceGetGpuInstanceId", device=mig)

    def compute_instance(self, mig: Handle) -> int:
        return self._number("nvmlDeviceGetComputeInstanceId", device=mig)

    def mig_attributes(self, mig: Handle) -> MigAttributes:
        found = self._structure("nvmlDeviceGetAttributes_v2", device=mig)
        return MigAttributes(
            gpu_slices=int(found.gpuInstanceSliceCount),
            compute_slices=int(found.computeInstanceSliceCount),
            memory_mib=int(found.memorySizeMB),
            multiprocessors=int(found.multiprocessorCount),
            copy_engines=int(found.sharedCopyEngineCount),
            decoders=int(found.sharedDecoderCount),
            encoders=int(found.sharedEncoderCount),
            jpeg_engines=int(found.sharedJpegCount),
            ofa_engines=int(found.sharedOfaCount),
        )

    def event_set_create(self) -> EventSet:
        _no_events()

    def event_set_free(self, events: EventSet) -> None:
        _no_events()

    def event_types(self, device: Handle) -> int:
        return self._number("nvmlDeviceGetSupportedEventTypes", device=device)

    def event_register(self, device: Handle, types: int, events: EventSet) -> None:
        _no_events()

    def event_wait(self, events: EventSet, timeout_ms: int) -> EventData:
        _no_events()

    def field(self, device: Handle, field: Field) -> int:
        room = pynvml.c_nvmlFieldValue_t(fieldId=int(field))
        (value,) = self._structures("nvmlDeviceGetFieldValues", 1, device=device, room=room)
        if value.nvmlReturn != Code.SUCCESS:
            raise _error(Code(value.nvmlReturn))
        signed = value.valueType == pynvml.NVML_VALUE_TYPE_SIGNED_INT
        return int(value.value.siVal if signed else value.value.ullVal)

    def remapped_rows(self, device: Handle) -> RemappedRows:
        rows = self._numbers("nvmlDeviceGetRemappedRows", device=device)
        return RemappedRows(pending=bool(rows[2]), failure=bool(rows[3]))

    def volatile_ecc(self, device: Handle, kind: EccKind) -> int:
        return self._number("nvmlDeviceGetTotalEccErrors", int(kind), 0, device=device)

    def fabric(self, device: Handle) -> FabricInfo:
        name = "nvmlDeviceGetGpuFabricInfo"
        try:
            info = self._structure(
                f"{name}V", device=device, room=pynvml.c_nvmlGpuFabricInfo_v2_t()
            )
        except NvmlError as error:
            if error.code not in _OLDER:
                raise
            info = self._structure(name, device=device)
        return FabricInfo(int(info.state), int(info.status))

    def is_confidential(self) -> bool:
        return bool(self._structure("nvmlSystemGetConfComputeState").ccFeature)

    def is_confidential_ready(self) -> bool:
        return bool(self._number("nvmlSystemGetConfComputeGpusReadyState"))

    def utilization_percent(self, device: Handle) -> int:
        return int(self._structure("nvmlDeviceGetUtilizationRates", device=device).gpu)

    def temperature_c(self, device: Handle) -> int:
        return self._number("nvmlDeviceGetTemperature", 0, device=device)

    def shutdown_temperature_c(self, device: Handle) -> int:
        kind = pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN
        return self._number("nvmlDeviceGetTemperatureThreshold", kind, device=device)

    def temperature_margin_c(self, device: Handle) -> int:
        room = pynvml.c_nvmlMarginTemperature_v1_t()
        call = "nvmlDeviceGetMarginTemperature"
        return int(self._structure(call, device=device, room=room).marginTemperature)

    def power_mw(self, device: Handle) -> int:
        return self._number("nvmlDeviceGetPowerUsage", device=device)

    def power_limit_mw(self, device: Handle) -> int:
        return self._number("nvmlDeviceGetEnforcedPowerLimit", device=device)

    def energy_mj(self, device: Handle) -> int:
        return self._number("nvmlDeviceGetTotalEnergyConsumption", device=device)

    def clock_mhz(self, device: Handle, clock: Clock) -> int:
        return self._number("nvmlDeviceGetClockInfo", int(clock), device=device)

    def clock_reasons(self, device: Handle) -> int:
        try:
            return self._number("nvmlDeviceGetCurrentClocksEventReasons", device=device)
        except NvmlError as error:
            if error.code != Code.FUNCTION_NOT_FOUND:
                raise
            return self._number("nvmlDeviceGetCurrentClocksThrottleReasons", device=device)

    def processes(self, device: Handle) -> list[Process]:
        return self._running("nvmlDeviceGetComputeRunningProcesses", device)

    def graphics_processes(self, device: Handle) -> list[Process]:
        return self._running("nvmlDeviceGetGraphicsRunningProcesses", device)

    def _running(self, name: str, device: Handle) -> list[Process]:
        try:
            found = self._structures(f"{name}_v3", device=device)
        except NvmlError as error:
            if error.code != Code.FUNCTION_NOT_FOUND:
                raise
            found = self._structures(f"{name}_v2", device=device)
        return [
            Process(
                pid=int(process.pid),
                memory=int(process.usedGpuMemory),
                gpu_instance=int(process.gpuInstanceId),
                compute_instance=int(process.computeInstanceId),
            )
            for process in found
        ]

    def process_samples(self, device: Handle) -> list[ProcessSample]:
        try:
            samples = self._structures("nvmlDeviceGetProcessUtilization", 0, device=device)
        except NvmlError as error:
            if error.code != Code.NOT_FOUND:
                raise
            return []
        return [
            ProcessSample(int(sample.pid), int(sample.timeStamp), int(sample.smUtil))
            for sample in samples
        ]

    def topology(self, one: Handle, other: Handle) -> int:
        return self._number("nvmlDeviceGetTopologyCommonAncestor", device=one, other=other)

    def nvlink_active(self, device: Handle, link: int) -> bool:
        return bool(self._number("nvmlDeviceGetNvLinkState", link, device=device))

    def nvlink_remote(self, device: Handle, link: int) -> str:
        info = self._structure("nvmlDeviceGetNvLinkRemotePciInfo_v2", link, device=device)
        return _decoded(info.busId)

    def _number(
        self, name: str, *numbers: int, device: Handle | None = None, other: Handle | None = None
    ) -> int:
        (number,) = self._numbers(name, *numbers, device=device, other=other)
        return number

    def _numbers(
        self, name: str, *numbers: int, device: Handle | None = None, other: Handle | None = None
    ) -> list[int]:
        response = self._call(name, numbers, device, other)
        values = response if isinstance(response, tuple) else (response,)
        return [value for value in values if isinstance(value, int)]

    def _text(self, name: str, *numbers: int, device: Handle | None = None) -> str:
        response = self._call(name, numbers, device)
        text = response if isinstance(response, bytes) else str(response).encode()
        return text.decode("utf-8", "replace")

    def _structure(
        self,
        name: str,
        *numbers: int,
        device: Handle | None = None,
        room: ctypes.Structure | None = None,
    ) -> ctypes.Structure:
        (found,) = self._structures(name, *numbers, device=device, room=room)
        return found

    def _structures(
        self,
        name: str,
        *numbers: int,
        device: Handle | None = None,
        room: ctypes.Structure | None = None,
    ) -> list[ctypes.Structure]:
        response = self._call(name, numbers, device, room=room)
        values = response if isinstance(response, list | tuple) else (response,)
        return [value for value in values if isinstance(value, ctypes.Structure)]

    def _call(
        self,
        name: str,
        numbers: tuple[int, ...],
        device: Handle | None = None,
        other: Handle | None = None,
        room: ctypes.Structure | None = None,
    ) -> Response | None:
        node = self._node
        if node.driver.failure() is not None:
            raise _error(Code.DRIVER_NOT_LOADED)
        try:
            call = NvmlCall(
                name,
                node,
                self._handles,
                self._enumerations,
                self._event_sets,
                self._samples,
                self._pids,
                session=0,
                place=None if device is None else self._handles.place(node, device),
                other=None if other is None else self._handles.place(node, other),
                numbers=numbers,
                structures=() if room is None else (room,),
            )
            return responded(_FUNCTIONS[name], call)
        except NvmlFailure as failure:
            raise _error(failure.code) from failure


def _decoded(text: str | bytes) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else text


def _error(code: Code) -> NvmlError:
    return NvmlError(code, text_of(code))


def _no_events() -> NoReturn:
    raise _error(Code.NOT_SUPPORTED)
