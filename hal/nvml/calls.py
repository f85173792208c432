"""NVML's functions behind the calls of `NvmlApi`, and what it means when one of them fails.

`CALLS` is the one list of them; the table in docs/nvml.md and the conformance suite come from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, assert_never

from hal.nvml.api import DRIVER_FAILED, LOST, Code

if TYPE_CHECKING:
    from collections.abc import Mapping


class Role(Enum):
    """What a call reads."""

    NODE = "node"
    """the GPUs as a whole: without it there are none"""
    IDENTITY = "identity"
    """which GPU it is: without it that GPU cannot be used"""
    OPTIONAL = "optional"
    """a value that can be unknown"""
    EVENTS = "events"
    """what the driver reports by itself: without it faults may be missed"""


class Meaning(Enum):
    """What a failed call means."""

    DRIVER_FAILED = "the driver does not respond: all GPUs are Unhealthy"
    GPU_LOST = "the GPU is lost: Unhealthy"
    GPU_UNREADABLE = "the GPU cannot be read: Unhealthy, with the advice for the code"
    VALUE_UNKNOWN = "the value is unknown; the GPU stays as it is"
    NOTHING_NEW = "nothing happened"
    WATCH_FAILED = "it is tried again; all GPUs are Unhealthy after `health.blindAfter`"


@dataclass(frozen=True, slots=True)
class Call:
    """A function of NVML, and what is unknown to the user without it."""

    function: str
    role: Role
    value: str


CALLS: Final[Mapping[str, Call]] = {
    "init": Call("nvmlInit_v2", Role.NODE, "the connection to the driver"),
    "device_count": Call("nvmlDeviceGetCount_v2", Role.NODE, "the number of GPUs"),
    "handle_by_index": Call("nvmlDeviceGetHandleByIndex_v2", Role.IDENTITY, "the handle"),
    "uuid": Call("nvmlDeviceGetUUID", Role.IDENTITY, "the UUID"),
    "driver_version": Call("nvmlSystemGetDriverVersion", Role.OPTIONAL, "the driver's version"),
    "cuda_version": Call(
        "nvmlSystemGetCudaDriverVersion_v2", Role.OPTIONAL, "the CUDA version of the driver"
    ),
    "name": Call("nvmlDeviceGetName", Role.OPTIONAL, "the product"),
    "pci_bus_id": Call("nvmlDeviceGetPciInfo_v3", Role.OPTIONAL, "PCI address and NUMA node"),
    "minor": Call("nvmlDeviceGetMinorNumber", Role.OPTIONAL, "the device node"),
    "compute_capability": Call(
        "nvmlDeviceGetCudaComputeCapability", Role.OPTIONAL, "the compute capability"
    ),
    "compute_mode": Call("nvmlDeviceGetComputeMode", Role.OPTIONAL, "the compute mode"),
    "memory": Call("nvmlDeviceGetMemoryInfo_v2", Role.OPTIONAL, "the memory"),
    "mig_mode": Call("nvmlDeviceGetMigMode", Role.OPTIONAL, "whether it is in MIG mode"),
    "max_mig_devices": Call("nvmlDeviceGetMaxMigDeviceCount", Role.OPTIONAL, "the MIG devices"),
    "mig_handle": Call("nvmlDeviceGetMigDeviceHandleByIndex", Role.OPTIONAL, "that MIG device"),
    "gpu_instance": Call("nvmlDeviceGetGpuInstanceId", Role.OPTIONAL, "that MIG device"),
    "compute_instance": Call("nvmlDeviceGetComputeInstanceId", Role.OPTIONAL, "that MIG device"),
    "mig_attributes": Call(
        "nvmlDeviceGetAttributes_v2", Role.OPTIONAL, "the parts of that MIG device"
    ),
    "field": Call("nvmlDeviceGetFieldValues", Role.OPTIONAL, "recovery action, shutdown margin"),
    "remapped_rows": Call("nvmlDeviceGetRemappedRows", Role.OPTIONAL, "the row remaps"),
    "volatile_ecc": Call("nvmlDeviceGetTotalEccErrors", Role.OPTIONAL, "the ECC errors"),
    "fabric": Call("nvmlDeviceGetGpuFabricInfoV", Role.OPTIONAL, "the state of the fabric"),
    "is_confidential": Call(
        "nvmlSystemGetConfComputeState", Role.OPTIONAL, "whether computing is confidential"
    ),
    "is_confidential_ready": Call(
        "nvmlSystemGetConfComputeGpusReadyState",
        Role.OPTIONAL,
        "whether the GPUs accept confidential work",
    ),
    "utilization_percent": Call("nvmlDeviceGetUtilizationRates", Role.OPTIONAL, "the utilisation"),
    "temperature_c": Call("nvmlDeviceGetTemperature", Role.OPTIONAL, "the temperature"),
    "shutdown_temperature_c": Call(
        "nvmlDeviceGetTemperatureThreshold", Role.OPTIONAL, "the shutdown temperature"
    ),
    "temperature_margin_c": Call(
        "nvmlDeviceGetMarginTemperature", Role.OPTIONAL, "the margin to the slowdown"
    ),
    "power_mw": Call("nvmlDeviceGetPowerUsage", Role.OPTIONAL, "the power"),
    "power_limit_mw": Call("nvmlDeviceGetEnforcedPowerLimit", Role.OPTIONAL, "the power limit"),
    "energy_mj": Call("nvmlDeviceGetTotalEnergyConsumption", Role.OPTIONAL, "the energy"),
    "clock_mhz": Call("nvmlDeviceGetClockInfo", Role.OPTIONAL, "the clocks"),
    "clock_reasons": Call(
        "nvmlDeviceGetCurrentClocksEventReasons", Role.OPTIONAL, "why the clocks are low"
    ),
    "processes": Call("nvmlDeviceGetComputeRunningProcesses_v3", Role.OPTIONAL, "the processes"),
    "graphics_processes": Call(
        "nvmlDeviceGetGraphicsRunningProcesses_v3", Role.OPTIONAL, "the processes for graphics"
    ),
    "process_samples": Call(
        "nvmlDeviceGetProcessUtilization", Role.OPTIONAL, "the SM shares of processes"
    ),
    "process_name": Call("nvmlSystemGetProcessName", Role.OPTIONAL, "the name of a process"),
    "event_types": Call(
        "nvmlDeviceGetSupportedEventTypes", Role.OPTIONAL, "its events (probes go on)"
    ),
    "event_register": Call("nvmlDeviceRegisterEvents", Role.OPTIONAL, "its events (probes go on)"),
    "event_set_create": Call("nvmlEventSetCreate", Role.EVENTS, "the events"),
    "event_wait": Call("nvmlEventSetWait_v2", Role.EVENTS, "the events"),
    "topology": Call(
        "nvmlDeviceGetTopologyCommonAncestor", Role.OPTIONAL, "the path to another GPU"
    ),
    "nvlink_active": Call("nvmlDeviceGetNvLinkState", Role.OPTIONAL, "that NVLink"),
    "nvlink_remote": Call("nvmlDeviceGetNvLinkRemotePciInfo_v2", Role.OPTIONAL, "that NVLink"),
}
"""By the method of `NvmlApi`."""


def meaning(call: Call, code: Code) -> Meaning:
    """What it means if this call alone fails with this code.

    A GPU of which no call gives a value is lost, whatever the codes.
    """
    match call.role:
        case Role.EVENTS:
            timeout = code is Code.TIMEOUT and call is CALLS["event_wait"]
            return Meaning.NOTHING_NEW if timeout else Meaning.WATCH_FAILED
        case Role.NODE:
            return Meaning.DRIVER_FAILED
        case Role.OPTIONAL:
            return Meaning.VALUE_UNKNOWN
        case Role.IDENTITY:
            if code in DRIVER_FAILED:
                return Meaning.DRIVER_FAILED
            return Meaning.GPU_LOST if code in LOST else Meaning.GPU_UNREADABLE
        case _:
            assert_never(call.role)
