"""NVML's return codes as the hardware layer's errors with remedies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hal.errors import DriverNotFound, DriverUnavailable, GpuLost, HalError, NotSupported
from hal.nvml.api import Code
from hal.nvml.library import LIBRARY, REMEDY
from hal.types import CallFailure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hal.nvml.api import NvmlError

_DMESG: Final = "See the driver's messages in 'dmesg'"
_AGAIN: Final = "Try again; if the error persists, see the driver's messages in 'dmesg'"
_BUG: Final = (
    "This is a mistake of the program or of the driver: report it with the driver's version"
)

_DRIVER_REMEDIES: Final[Mapping[int, str]] = {
    Code.LIB_RM_VERSION_MISMATCH: "The driver was updated under running programs: reload its "
    "modules or reboot; if that was done, restart this program, which still has the older library"
}
_DRIVER_REMEDY: Final = "Check that the kernel module nvidia is loaded ('lsmod', 'dmesg')"

_UNSUPPORTED_REMEDIES: Final[Mapping[int, str]] = {
    Code.NO_PERMISSION: "Check the rights of /dev/nvidia* and the container's cgroup; as root, "
    "or in a container with all GPUs, it works",
    Code.NO_DATA: "Wait until the driver has samples, or do without",
}
_UNSUPPORTED_REMEDY: Final = "Use a newer driver, or do without"

_REMEDIES: Final[Mapping[int, str]] = {
    Code.INVALID_ARGUMENT: _BUG,
    Code.ALREADY_INITIALIZED: _BUG,
    Code.NOT_FOUND: "List the GPUs again: the requested object no longer exists",
    Code.INSUFFICIENT_SIZE: _AGAIN,
    Code.INSUFFICIENT_POWER: "Attach the GPU's power cables: it draws less than it needs",
    Code.TIMEOUT: _AGAIN,
    Code.IRQ_ISSUE: "The kernel has trouble with the GPU's interrupts: see 'dmesg' for irq, and "
    "the firmware's settings for MSI",
    Code.CORRUPTED_INFOROM: "The GPU's own memory of its settings is corrupt: reset it; if the "
    "error persists, have the GPU replaced",
    Code.OPERATING_SYSTEM: "The operating system keeps this program from the GPU: check the rights "
    "of /dev/nvidia*, and the cgroup of the container ('systemctl daemon-reload' takes devices "
    "away that the runtime does not know of)",
    Code.IN_USE: "End the processes that use the GPU ('nvidia-smi'), and try again",
    Code.MEMORY: "The machine has too little memory left: see 'dmesg' for the OOM killer",
    Code.INSUFFICIENT_RESOURCES: "End what uses the GPU's instances, and try again",
    Code.NOT_READY: "Wait until the fabric manager has set up NVLink ('systemctl status "
    "nvidia-fabricmanager'), and try again",
    Code.INVALID_STATE: _AGAIN,
    Code.UNKNOWN: "See the driver's messages in 'dmesg'; in a container, check that its cgroup "
    "still has the devices ('systemctl daemon-reload' can take them away)",
}


_ACTIONS: Final[Mapping[int, str]] = {
    Code.NO_PERMISSION: "check-permissions",
    Code.OPERATING_SYSTEM: "check-permissions",
    Code.INSUFFICIENT_POWER: "check-power",
    Code.IRQ_ISSUE: "check-interrupts",
    Code.MEMORY: "check-host-memory",
    Code.INSUFFICIENT_RESOURCES: "check-host-memory",
    Code.NOT_READY: "check-fabric-manager",
    Code.GPU_IS_LOST: "reset-or-reboot",
    Code.RESET_REQUIRED: "reset-or-reboot",
    Code.GPU_NOT_FOUND: "reset-or-reboot",
    Code.CORRUPTED_INFOROM: "reset-or-reboot",
    # What many drivers return for a GPU that has fallen off the bus.
    Code.UNKNOWN: "reset-or-reboot",
}
_NO_ACTION: Final = "see-dmesg"


def call_failure(err: NvmlError) -> CallFailure:
    """The failed call with advice for its code."""
    remedies = {**_REMEDIES, **_UNSUPPORTED_REMEDIES, **_DRIVER_REMEDIES}
    return CallFailure(
        err.call or "NVML",
        err.code,
        err.text,
        remedies.get(err.code, _DMESG),
        _ACTIONS.get(err.code, _NO_ACTION),
    )


def hal_error(err: NvmlError, doing: str, uuid: str | None = None) -> HalError:
    """The HAL's error for an NVML error that came up while `doing` something (to GPU `uuid`)."""
    where = f" of GPU {uuid}" if uuid else ""
    cause = f"{doing}{where} failed: {err}"
    if err.code == Code.LIBRARY_NOT_FOUND:
        return DriverNotFound(LIBRARY, ("the loader's own search path",), REMEDY)
    if err.is_driver_failure:
        return DriverUnavailable(cause, _DRIVER_REMEDIES.get(err.code, _DRIVER_REMEDY))
    if err.is_lost and uuid is not None:
        return GpuLost(uuid, str(err))
    if err.is_unsupported:
        return NotSupported(cause, _UNSUPPORTED_REMEDIES.get(err.code, _UNSUPPORTED_REMEDY))
    return HalError(cause, _REMEDIES.get(err.code, _DMESG))


def open_error(err: NvmlError) -> DriverNotFound | DriverUnavailable:
    """Any failure to connect, as one of the two errors that `open` may raise."""
    error = hal_error(err, "Connecting to the driver")
    if isinstance(error, DriverNotFound | DriverUnavailable):
        return error
    return DriverUnavailable(
        error.cause,
        "Check that this container may use /dev/nvidiactl (RuntimeClass 'nvidia'), and 'dmesg'",
    )
