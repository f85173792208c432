"""The hardware abstraction layer: what a GPU is and how to watch it.

This package knows no Kubernetes and no simulation. A backend implements `Backend`; the value types
that cross it, the errors it raises and the Xid catalogue are exported here.
"""

from hal.backend import Backend
from hal.errors import (
    DriverNotFound,
    DriverReplaced,
    DriverUnavailable,
    GpuLost,
    HalError,
    HalHung,
    NotSupported,
    UnknownGpu,
)
from hal.gpucalls import GpuCalls
from hal.types import (
    GIB,
    PCI_3D,
    PCI_VGA,
    CallFailure,
    ComputeMode,
    ComputeProcess,
    EccError,
    Event,
    FabricState,
    Gpu,
    GpuAppeared,
    GpuDisappeared,
    GpuState,
    Link,
    LinkKind,
    MigAttributes,
    MigDevice,
    Probe,
    RecoveryAction,
    Telemetry,
    ThrottleReason,
    TimeSliceLevel,
    XidError,
)
from hal.xid import Xid, XidAction, XidScope, lookup_xid

__all__ = [
    "GIB",
    "PCI_3D",
    "PCI_VGA",
    "Backend",
    "CallFailure",
    "ComputeMode",
    "ComputeProcess",
    "DriverNotFound",
    "DriverReplaced",
    "DriverUnavailable",
    "EccError",
    "Event",
    "FabricState",
    "Gpu",
    "GpuAppeared",
    "GpuCalls",
    "GpuDisappeared",
    "GpuLost",
    "GpuState",
    "HalError",
    "HalHung",
    "Link",
    "LinkKind",
    "MigAttributes",
    "MigDevice",
    "NotSupported",
    "Probe",
    "RecoveryAction",
    "Telemetry",
    "ThrottleReason",
    "TimeSliceLevel",
    "UnknownGpu",
    "Xid",
    "XidAction",
    "XidError",
    "XidScope",
    "lookup_xid",
]
