"""The part of NVML that the backend uses, typed: calls, values, return codes.

`NvmlApi` has NVML's types: handles, masks, milliwatts. The other modules of this package interpret
them (errors: `hal.nvml.failures`); the real implementation
is `hal.nvml.binding`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Final, NewType, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hal.types import MigAttributes

Handle = NewType("Handle", int)
"""A device as NVML knows it: a pointer, equal for equal devices until NVML is shut down."""

EventSet = NewType("EventSet", int)

NO_INSTANCE: Final = 0xFFFFFFFF
"""NVML's "no GPU instance" and "no compute instance"."""


class Code(IntEnum):
    """NVML's return codes, all of them; `hal.nvml.failures` maps them to errors."""

    SUCCESS = 0
    UNINITIALIZED = 1
    INVALID_ARGUMENT = 2
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    ALREADY_INITIALIZED = 5
    NOT_FOUND = 6
    INSUFFICIENT_SIZE = 7
    INSUFFICIENT_POWER = 8
    DRIVER_NOT_LOADED = 9
    TIMEOUT = 10
    IRQ_ISSUE = 11
    LIBRARY_NOT_FOUND = 12
    FUNCTION_NOT_FOUND = 13
    CORRUPTED_INFOROM = 14
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16
    OPERATING_SYSTEM = 17
    LIB_RM_VERSION_MISMATCH = 18
    IN_USE = 19
    MEMORY = 20
    NO_DATA = 21
    VGPU_ECC_NOT_SUPPORTED = 22
    INSUFFICIENT_RESOURCES = 23
    FREQ_NOT_SUPPORTED = 24
    ARGUMENT_VERSION_MISMATCH = 25
    DEPRECATED = 26
    NOT_READY = 27
    GPU_NOT_FOUND = 28
    INVALID_STATE = 29
    RESET_TYPE_NOT_SUPPORTED = 30
    UNKNOWN = 999


DRIVER_FAILED: Final = frozenset(
    {Code.UNINITIALIZED, Code.DRIVER_NOT_LOADED, Code.LIB_RM_VERSION_MISMATCH}
)
LOST: Final = frozenset({Code.GPU_IS_LOST, Code.RESET_REQUIRED, Code.GPU_NOT_FOUND})
UNSUPPORTED: Final = frozenset(
    {
        Code.NOT_SUPPORTED,
        Code.FUNCTION_NOT_FOUND,
        Code.ARGUMENT_VERSION_MISMATCH,
        Code.NO_PERMISSION,
        Code.NO_DATA,
        Code.VGPU_ECC_NOT_SUPPORTED,
        Code.FREQ_NOT_SUPPORTED,
        Code.DEPRECATED,
        Code.RESET_TYPE_NOT_SUPPORTED,
    }
)


class NvmlError(Exception):
    """A call to NVML failed: `code` is its return code (see `Code`), `text` its message.

    `call` is the function, where that is known.
    """

    def __init__(self, code: int, text: str = "", call: str = "") -> None:
        self.code = code
        self.call = call
        self.text = text or f"NVML error {code}"
        super().__init__(f"{self.text} ({code})")

    @property
    def is_lost(self) -> bool:
        return self.code in LOST

    @property
    def is_driver_failure(self) -> bool:
        return self.code in DRIVER_FAILED

    @property
    def is_unsupported(self) -> bool:
        """True if this GPU, driver or user does not support the call."""
        return self.code in UNSUPPORTED


def has_long_process_entries(driver_version: str) -> bool:
    """True for drivers 535.43 to 535.86, whose process lists of version 3 have longer entries.

    Source: nvidia-ml-py 12.535.77 and nvitop, which read 32 bytes for each with these drivers.
    """
    branch, _, rest = driver_version.partition(".")
    minor = rest.partition(".")[0]
    return branch == "535" and minor.isdecimal() and 43 <= int(minor) <= 86


class EventType(IntFlag):
    SINGLE_BIT_ECC = 0x1
    DOUBLE_BIT_ECC = 0x2
    XID = 0x8


class Clock(IntEnum):
    SM = 1
    MEMORY = 2


class EccKind(IntEnum):
    CORRECTED = 0
    UNCORRECTED = 1


class Field(IntEnum):
    SHUTDOWN_MARGIN_C = 193
    RECOVERY_ACTION = 230


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of device memory; `free` is without what the driver keeps."""

    total: int
    free: int


@dataclass(frozen=True, slots=True)
class FabricInfo:
    """NVML's number of the state of the NVLink fabric, and the fabric's return code."""

    state: int
    status: int


@dataclass(frozen=True, slots=True)
class EventData:
    """One event; `data` is the Xid of a `XID` event, instances are `NO_INSTANCE` where none."""

    device: Handle
    type: int
    data: int
    gpu_instance: int
    compute_instance: int


@dataclass(frozen=True, slots=True)
class RemappedRows:
    """Whether a row remapping waits for a reset, and whether one failed."""

    pending: bool
    failure: bool


@dataclass(frozen=True, slots=True)
class Process:
    """A process with a context; memory in bytes, None where NVML does not report it."""

    pid: int
    memory: int | None
    gpu_instance: int
    compute_instance: int


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """How busy a process kept the SMs (percent) in the sample period up to `timestamp_us`."""

    pid: int
    timestamp_us: int
    sm_percent: int


class NvmlApi(Protocol):
    """NVML's calls under short names. Every call raises `NvmlError`, and nothing else."""

    def init(self) -> None:
        """Connect to the driver; counted, each call needs its `shutdown`."""

    def shutdown(self) -> None:
        """Undo one `init`; the library stays loaded."""

    def driver_version(self) -> str: ...

    def cuda_version(self) -> int:
        """The newest CUDA that the driver supports: 1000 for each major, 10 for each minor."""

    def process_name(self, pid: int) -> str: ...

    def device_count(self) -> int:
        """The number of GPUs, lost ones included until NVML is initialised again."""

    def handle_by_index(self, index: int) -> Handle: ...
    def uuid(self, device: Handle) -> str: ...

    def name(self, device: Handle) -> str:
        """The product name of a GPU; that of a MIG device ends with its profile."""

    def minor(self, device: Handle) -> int:
        """The N of `/dev/nvidiaN`."""

    def pci_bus_id(self, device: Handle) -> str:
        """The PCI address in NVML's spelling."""

    def memory(self, device: Handle) -> Memory: ...
    def compute_capability(self, device: Handle) -> tuple[int, int]: ...
    def compute_mode(self, device: Handle) -> int: ...

    def mig_mode(self, device: Handle) -> bool:
        """Whether MIG is in force now."""

    def max_mig_devices(self, device: Handle) -> int:
        """One more than the highest index that a MIG device can have."""

    def mig_handle(self, device: Handle, index: int) -> Handle:
        """The MIG device at an index; `NOT_FOUND` if there is none."""

    def gpu_instance(self, mig: Handle) -> int: ...
    def compute_instance(self, mig: Handle) -> int: ...
    def mig_attributes(self, mig: Handle) -> MigAttributes: ...
    def event_set_create(self) -> EventSet: ...

    def event_set_free(self, events: EventSet) -> None:
        """Free an event set; no thread may wait on it."""

    def event_types(self, device: Handle) -> int:
        """The mask of the event types that the GPU can report."""

    def event_register(self, device: Handle, types: int, events: EventSet) -> None: ...

    def event_wait(self, events: EventSet, timeout_ms: int) -> EventData:
        """The next event; `TIMEOUT` if none came."""

    def field(self, device: Handle, field: Field) -> int: ...
    def remapped_rows(self, device: Handle) -> RemappedRows: ...

    def volatile_ecc(self, device: Handle, kind: EccKind) -> int:
        """ECC errors since the driver was loaded."""

    def fabric(self, device: Handle) -> FabricInfo: ...

    def is_confidential(self) -> bool:
        """Whether confidential computing is in force on this node."""

    def is_confidential_ready(self) -> bool:
        """Whether the GPUs accept work in confidential computing."""

    def utilization_percent(self, device: Handle) -> int:
        """Percent of the last sample period in which a kernel ran."""

    def temperature_c(self, device: Handle) -> int: ...

    def shutdown_temperature_c(self, device: Handle) -> int:
        """The temperature at which the GPU shuts itself down; not supported since Hopper."""

    def temperature_margin_c(self, device: Handle) -> int:
        """Degrees to the temperature at which the GPU slows itself down; negative above it."""

    def power_mw(self, device: Handle) -> int: ...

    def power_limit_mw(self, device: Handle) -> int:
        """The board's limit, all limits taken together."""

    def energy_mj(self, device: Handle) -> int:
        """What the board drew since the driver was loaded; not supported before Volta."""

    def clock_mhz(self, device: Handle, clock: Clock) -> int: ...

    def clock_reasons(self, device: Handle) -> int:
        """The mask of the reasons for the present clocks."""

    def processes(self, device: Handle) -> Sequence[Process]:
        """Processes with a compute context."""

    def graphics_processes(self, device: Handle) -> Sequence[Process]:
        """Processes with a graphics context; some have one of each."""

    def process_samples(self, device: Handle) -> Sequence[ProcessSample]:
        """The samples of SM use that the driver still has."""

    def topology(self, one: Handle, other: Handle) -> int:
        """The level of the nearest common ancestor of two GPUs."""

    def nvlink_active(self, device: Handle, link: int) -> bool: ...

    def nvlink_remote(self, device: Handle, link: int) -> str:
        """The PCI address of the other end of the link, in NVML's spelling."""
