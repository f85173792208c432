"""What counts as a fault, how severe it is, and what ends it: events and probes in, faults out.

What a fault does to a GPU's state over time is in `health`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TYPE_CHECKING

from hal import EccError, GpuDisappeared, RecoveryAction, XidAction, XidError, lookup_xid

if TYPE_CHECKING:
    from hal import CallFailure, Event, Probe

RESET_OR_REBOOT = "reset-or-reboot"
CONTAINED_MEMORY_ERROR = 94
"""The Xid of an uncorrectable ECC error that affected one process only."""


class Cause(Enum):
    """Where a fault was seen: the values of a metric's label."""

    XID = "xid"
    ECC = "ecc"
    LOST = "lost"
    UNREACHABLE = "unreachable"
    RECOVERY_ACTION = "recovery-action"
    ROW_REMAP = "row-remap"
    THERMAL = "thermal"
    FABRIC = "fabric"
    CONFIDENTIAL = "confidential-computing"


class Cure(IntEnum):
    """What must be seen before the quiet period may begin; a stronger one replaces a weaker one."""

    CLEAN_PROBE = 0
    DRIVERS_WORD = 1
    """The driver reports that no recovery action is needed; if it cannot report one: a reset."""
    RESET = 2
    """A reset, a reboot or a new load of the driver."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; `reason` and `action` are short texts for people, `xid` the code if it was one."""

    cause: Cause
    reason: str
    action: str
    cure: Cure = Cure.CLEAN_PROBE
    xid: int | None = None


@dataclass(frozen=True, slots=True)
class XidPolicy:
    """Which Xids make a GPU Unhealthy; what is not named follows the catalogue's action.

    `fatal` and `all_fatal` win over `ignored` and `all_ignored`, as with NVIDIA's variables.
    """

    ignored: frozenset[int] = frozenset()
    fatal: frozenset[int] = frozenset()
    all_ignored: bool = False
    all_fatal: bool = False

    def is_fatal(self, code: int) -> bool:
        if code in self.fatal or self.all_fatal:
            return True
        if code in self.ignored or self.all_ignored:
            return False
        return not lookup_xid(code).action.application_error

    @property
    def none_fatal(self) -> bool:
        return self.all_ignored and not self.fatal and not self.all_fatal


_RESET_ACTIONS = frozenset(
    {XidAction.RESET_GPU, XidAction.ECC_WORKFLOW, XidAction.REBOOT_NODE, XidAction.RESTART_VM}
)


def fault_of_event(event: Event, xids: XidPolicy, *, hardware_checks: bool = True) -> Fault | None:
    """The fault that an event means, if any.

    `hardware_checks` false leaves out what the driver reports besides Xids; a lost GPU counts
    all the same, for nothing can run on it.
    """
    match event:
        case XidError(xid=code) if xids.is_fatal(code):
            xid = lookup_xid(code)
            cure = Cure.RESET if xid.action in _RESET_ACTIONS else Cure.CLEAN_PROBE
            return Fault(Cause.XID, f"Xid {code}: {xid.meaning}", xid.action.value, cure, code)
        case EccError(uncorrectable=True) if hardware_checks:
            # The driver decides whether it was contained: Xid 94 reports that at once.
            reason = "uncorrectable ECC error"
            return Fault(Cause.ECC, reason, XidAction.ECC_WORKFLOW.value, Cure.DRIVERS_WORD)
        case GpuDisappeared(failure=failure):
            if failure is not None and failure.action != RESET_OR_REBOOT:
                return _unreadable(failure)
            return Fault(Cause.LOST, "GPU lost", RESET_OR_REBOOT, Cure.RESET)
    return None


@dataclass(frozen=True, slots=True)
class ProbeChecks:
    """What of a probe counts besides whether the GPU responds."""

    hardware: bool = True
    fabric: bool = True
    confidential: bool = True


def fault_of_probe(probe: Probe, checks: ProbeChecks = ProbeChecks()) -> Fault | None:
    """The fault that a probe shows, if any."""
    if not probe.reachable:
        failure = probe.failure
        if failure is not None and failure.action != RESET_OR_REBOOT:
            return _unreadable(failure)
        why = "" if failure is None else f": {failure}"
        return Fault(Cause.UNREACHABLE, f"GPU does not respond{why}", RESET_OR_REBOOT)
    hardware = None if probe.clean or not checks.hardware else _hardware_fault(probe)
    if hardware is not None:
        return hardware
    if checks.fabric and not probe.in_fabric:
        state = probe.fabric.value if probe.fabric is not None else "unknown"
        why = str(probe.fabric_failure or state)
        return Fault(Cause.FABRIC, f"NVLink fabric: {why}", "check-fabric-manager")
    if checks.confidential and probe.confidential_ready is False:
        reason = "confidential computing: the GPUs accept no work yet"
        return Fault(Cause.CONFIDENTIAL, reason, "set-gpu-ready-state")
    return None


def _hardware_fault(probe: Probe) -> Fault:
    if probe.thermal_shutdown:
        return Fault(Cause.THERMAL, "GPU is at its shutdown temperature", "check-cooling")
    if probe.row_remap_failed:
        return Fault(Cause.ROW_REMAP, "memory row remapping failed", "contact-support")
    reason = "the driver requests a recovery action"
    return Fault(Cause.RECOVERY_ACTION, reason, probe.recovery_action.value)


def _unreadable(failure: CallFailure) -> Fault:
    """The driver refuses a call about a GPU that may well be sound."""
    return Fault(Cause.UNREACHABLE, f"GPU cannot be read: {failure}", failure.action)


def fault_of_ecc_count(before: int | None, probe: Probe) -> Fault | None:
    """The fault in a count of uncorrectable ECC errors that grew without an event.

    Only where the driver names no recovery action: else that action decides.
    """
    if before is None or probe.uncorrectable_ecc is None:
        return None
    if probe.uncorrectable_ecc <= before or probe.recovery_action is not RecoveryAction.UNKNOWN:
        return None
    reason = f"{probe.uncorrectable_ecc - before} more uncorrectable ECC errors"
    return Fault(Cause.ECC, reason, XidAction.ECC_WORKFLOW.value, Cure.DRIVERS_WORD)
