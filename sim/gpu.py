"""One simulated GPU: identity, condition, and what happenings do to it. No clock, no I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hal import (
    ComputeProcess,
    EccError,
    Event,
    Gpu,
    GpuAppeared,
    GpuDisappeared,
    GpuState,
    Probe,
    RecoveryAction,
    Telemetry,
    ThrottleReason,
    TimeSliceLevel,
    XidAction,
    XidError,
    XidScope,
    lookup_xid,
)
from sim.driver import until_s
from sim.faults import (
    EccFault,
    Hang,
    LostFault,
    Plug,
    Recovery,
    RowRemap,
    ThermalShutdown,
    Unplug,
    XidFault,
)
from sim.heat import Heat
from sim.partition import GIB

if TYPE_CHECKING:
    from typing import TypeAlias

    from sim.profiles import Profile
    from sim.scenario import Tenant

    Suffered: TypeAlias = (
        XidFault
        | EccFault
        | RowRemap
        | LostFault
        | Hang
        | ThermalShutdown
        | Unplug
        | Plug
        | Recovery
    )
    """What befalls a GPU that stays the one it is."""

IDLE_POWER_SHARE = 0.1
"""Assumed where the profile has no measured idle power: share of the power limit."""

SHUTDOWN_TEMPERATURE_C = 95.0
"""Assumed where the profile does not say when the GPU shuts itself down: as an H100 SXM does."""

_DOUBLE_BIT_XIDS = frozenset({48, 95, 171, 172})
_ROW_REMAPPED, _ROW_REMAP_FAILED, _OFF_THE_BUS = 63, 64, 79


@dataclass(slots=True)
class SimulatedGpu:
    """State of one GPU; every method is given the model time in seconds where it matters."""

    identity: Gpu
    profile: Profile
    tenants: list[tuple[int, Tenant]] = field(default_factory=list)
    """Processes as (pid, tenant)."""
    lost: bool = False
    plugged: bool = True
    replaced_by: str | None = None
    """The UUID of the GPU that took its place."""
    overheated: bool = False
    recovery_action: RecoveryAction = RecoveryAction.NONE
    row_remap_pending: bool = False
    row_remap_failed: bool = False
    corrected_ecc: int = 0
    uncorrectable_ecc: int = 0
    resets: int = 0
    time_slice: TimeSliceLevel = TimeSliceLevel.DEFAULT
    _hung_until_s: float = -math.inf
    _loss_due_s: float = math.inf
    _heat: Heat = field(default_factory=Heat)

    def listed(self) -> Gpu:
        """The GPU as an enumeration shows it."""
        if not self.lost:
            return self.identity
        return replace(self.identity, state=GpuState.LOST)

    def suffer(self, what: Suffered, now_s: float) -> tuple[Event, ...]:
        """Let something befall the GPU; returns what the driver reports of it.

        Until its recovery nothing changes a lost GPU any more.
        """
        match what:
            case XidFault():
                return self._suffer_xid(what, now_s)
            case EccFault(uncorrectable=uncorrectable):
                self._worsen(what, now_s)
                return (EccError(self.identity.uuid, uncorrectable),)
            case LostFault():
                return self._lose(now_s)
            case Unplug():
                self.plugged = False
                return self._lose(now_s)
            case Plug():
                self.plugged = True
                return self._restart()
            case Recovery():
                self.row_remap_failed = False
                return self._restart()
            case _:
                self._worsen(what, now_s)
                return ()

    def elapse(self, now_s: float) -> tuple[Event, ...]:
        """Let happen what an earlier happening led to by now; returns what the driver reports."""
        return self._lose(now_s) if now_s >= self._loss_due_s else ()

    def hangs(self, now_s: float) -> bool:
        """True while calls about it do not return; a lost GPU fails them at once."""
        return not self.lost and now_s < self._hung_until_s

    def evict(self, now_s: float) -> None:
        """End all its processes."""
        self._settle(now_s)
        self.tenants.clear()

    def replace(self, successor: str, now_s: float) -> tuple[Event, ...]:
        """Another GPU took its place for ever; returns what the driver reports of this one."""
        self.replaced_by = successor
        return self._lose(now_s)

    def driver_loaded(self) -> None:
        """The driver was loaded anew, which resets the GPU; one that is lost stays lost."""
        self._count_reset()
        if self.recovery_action is RecoveryAction.RESET:
            self.recovery_action = RecoveryAction.NONE

    def probe(self) -> Probe:
        """What the hardware says of its usability; a lost GPU does not tell its temperature."""
        return Probe(
            reachable=not self.lost,
            recovery_action=self.recovery_action,
            row_remap_pending=self.row_remap_pending,
            row_remap_failed=self.row_remap_failed,
            uncorrectable_ecc=self.uncorrectable_ecc,
            epoch=f"reset-{self.resets}",
            thermal_shutdown=self.overheated and not self.lost,
        )

    def telemetry(self, now_s: float) -> Telemetry:
        """A reading at `now_s`."""
        load = self._load()
        self._settle(now_s)
        clocks, power = self.profile.clocks_mhz, self.profile.power_w
        busy = load > 0
        return Telemetry(
            utilization=load,
            memory_used_bytes=self._memory_used_bytes(),
            memory_total_bytes=self.identity.memory_bytes,
            temperature_c=self._temperature_c(),
            power_w=self._power_w(load),
            power_limit_w=power.default_limit,
            sm_clock_mhz=clocks.sm_max if busy else clocks.sm_idle,
            memory_clock_mhz=clocks.memory,
            throttle_reasons=self._throttle_reasons(busy=busy),
            corrected_ecc=self.corrected_ecc if self.profile.ecc else None,
            uncorrectable_ecc=self.uncorrectable_ecc if self.profile.ecc else None,
        )

    def processes(self) -> tuple[ComputeProcess, ...]:
        """Tenants as the driver lists them; each gets its share of a saturated GPU."""
        demand = sum(tenant.utilization for _, tenant in self.tenants)
        scale = 1 / demand if demand > 1 else 1.0
        return tuple(
            ComputeProcess(
                pid, tenant.name, int(tenant.memory_gib * GIB), tenant.utilization * scale
            )
            for pid, tenant in sorted(self.tenants, key=lambda entry: entry[0])
        )

    def _suffer_xid(self, what: XidFault, now_s: float) -> tuple[Event, ...]:
        code, uuid = what.xid, self.identity.uuid
        if self.lost:
            return (XidError(uuid, code),)
        xid = lookup_xid(code)
        if xid.scope is XidScope.PROCESS and self.tenants:
            self._settle(now_s)
            self.tenants.pop(0)
        if what.mig is not None:
            device = self.identity.mig_devices[what.mig]
            return (XidError(uuid, code, device.gpu_instance, device.compute_instance),)
        self.uncorrectable_ecc += code in _DOUBLE_BIT_XIDS
        self.row_remap_pending |= code == _ROW_REMAPPED
        self.row_remap_failed |= code == _ROW_REMAP_FAILED
        reported = XidError(uuid, code)
        if code == _OFF_THE_BUS:
            self.recovery_action = RecoveryAction.REBOOT
            return (reported, *self._lose(now_s))
        if xid.action in (XidAction.RESET_GPU, XidAction.ECC_WORKFLOW):
            self.evict(now_s)
            self.recovery_action = RecoveryAction.RESET
        return (reported,)

    def _worsen(self, what: EccFault | RowRemap | Hang | ThermalShutdown, now_s: float) -> None:
        """What the driver itself reports nothing of."""
        if self.lost:
            return
        match what:
            case EccFault(uncorrectable=uncorrectable, count=count):
                self.uncorrectable_ecc += count * uncorrectable
                self.corrected_ecc += count * (not uncorrectable)
            case RowRemap(failed=failed):
                self.row_remap_failed |= failed
                self.row_remap_pending |= not failed
            case Hang(for_s=for_s):
                self._hung_until_s = until_s(now_s, for_s)
            case ThermalShutdown(lost_after_s=lost_after_s):
                self.evict(now_s)
                self.overheated = True
                self._loss_due_s = now_s + lost_after_s

    def _lose(self, now_s: float) -> tuple[Event, ...]:
        if self.lost:
            return ()
        self.evict(now_s)
        self.lost = True
        return (GpuDisappeared(self.identity.uuid),)

    def _restart(self) -> tuple[Event, ...]:
        was_lost, self.lost = self.lost, False
        self.recovery_action = RecoveryAction.NONE
        self._hung_until_s, self._loss_due_s = -math.inf, math.inf
        self.overheated = False
        self._count_reset()
        return (GpuAppeared(self.identity.uuid),) if was_lost else ()

    def _count_reset(self) -> None:
        """Volatile counters start anew, and rows that wait for a remapping get it."""
        self.resets += 1
        self.row_remap_pending = False
        self.corrected_ecc = self.uncorrectable_ecc = 0

    def _load(self) -> float:
        return min(1.0, sum(tenant.utilization for _, tenant in self.tenants))

    def _memory_used_bytes(self) -> int:
        reserved = self.profile.memory_reserved_bytes or 0
        used = reserved + sum(int(tenant.memory_gib * GIB) for _, tenant in self.tenants)
        return min(used, self.identity.memory_bytes)

    def _temperature_c(self) -> float:
        if not self.overheated:
            return self._heat.temperature_c
        thermal = self.profile.thermal_c
        shutdown_c = thermal.shutdown_c if thermal else None
        return SHUTDOWN_TEMPERATURE_C if shutdown_c is None else shutdown_c

    def _throttle_reasons(self, *, busy: bool) -> ThrottleReason:
        if self.overheated:
            return ThrottleReason.THERMAL_HARDWARE
        return ThrottleReason.NONE if busy else ThrottleReason.IDLE

    def _power_w(self, load: float) -> float | None:
        limit_w = self.profile.power_w.default_limit
        if limit_w is None:
            return None
        idle_w = self.profile.power_w.idle or limit_w * IDLE_POWER_SHARE
        return round(idle_w + load * (limit_w - idle_w), 1)

    def _settle(self, now_s: float) -> None:
        self._heat.settle(self._load(), now_s)
