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
from sim.scenario import EccFault, LostFault, Recovery, XidFault

if TYPE_CHECKING:
    from sim.profiles import Profile
    from sim.scenario import Tenant

GIB = 1024**3
IDLE_TEMPERATURE_C = 33.0
"""GPU temperature of an idle A100 in the capture behind its profile."""

FULL_LOAD_RISE_C = 40.0
THERMAL_TIME_CONSTANT_S = 30.0
"""Assumed: first-order lag of the die behind the power it draws."""

IDLE_POWER_SHARE = 0.1
"""Assumed where the profile has no measured idle power: share of the power limit."""

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
    recovery_action: RecoveryAction = RecoveryAction.NONE
    row_remap_pending: bool = False
    row_remap_failed: bool = False
    corrected_ecc: int = 0
    uncorrectable_ecc: int = 0
    resets: int = 0
    time_slice: TimeSliceLevel = TimeSliceLevel.DEFAULT
    _heat_c: float = 0.0
    _heat_at_s: float = 0.0

    def listed(self) -> Gpu:
        """The GPU as an enumeration shows it."""
        if not self.lost:
            return self.identity
        return replace(self.identity, state=GpuState.LOST)

    def suffer(
        self, what: XidFault | EccFault | LostFault | Recovery, now_s: float
    ) -> tuple[Event, ...]:
        """Let something befall the GPU; returns what the driver reports of it.

        Until its recovery nothing changes a lost GPU any more.
        """
        uuid = self.identity.uuid
        match what:
            case XidFault(xid=code):
                return (XidError(uuid, code), *self._suffer_xid(code, now_s))
            case EccFault(uncorrectable=uncorrectable):
                if not self.lost:
                    self.uncorrectable_ecc += uncorrectable
                    self.corrected_ecc += not uncorrectable
                return (EccError(uuid, uncorrectable),)
            case LostFault():
                return self._lose(now_s)
            case Recovery():
                return self._recover()

    def probe(self) -> Probe:
        """What the hardware says of its usability."""
        return Probe(
            reachable=not self.lost,
            recovery_action=self.recovery_action,
            row_remap_pending=self.row_remap_pending,
            row_remap_failed=self.row_remap_failed,
            uncorrectable_ecc=self.uncorrectable_ecc,
            epoch=f"reset-{self.resets}",
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
            temperature_c=round(IDLE_TEMPERATURE_C + self._heat_c, 1),
            power_w=self._power_w(load),
            power_limit_w=power.default_limit,
            sm_clock_mhz=clocks.sm_max if busy else clocks.sm_idle,
            memory_clock_mhz=clocks.memory,
            throttle_reasons=ThrottleReason.NONE if busy else ThrottleReason.IDLE,
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

    def _suffer_xid(self, code: int, now_s: float) -> tuple[Event, ...]:
        if self.lost:
            return ()
        xid = lookup_xid(code)
        if xid.scope is XidScope.PROCESS and self.tenants:
            self._settle(now_s)
            self.tenants.pop(0)
        self.uncorrectable_ecc += code in _DOUBLE_BIT_XIDS
        self.row_remap_pending |= code == _ROW_REMAPPED
        self.row_remap_failed |= code == _ROW_REMAP_FAILED
        if code == _OFF_THE_BUS:
            self.recovery_action = RecoveryAction.REBOOT
            return self._lose(now_s)
        if xid.action in (XidAction.RESET_GPU, XidAction.ECC_WORKFLOW):
            self._settle(now_s)
            self.tenants.clear()
            self.recovery_action = RecoveryAction.RESET
        return ()

    def _lose(self, now_s: float) -> tuple[Event, ...]:
        if self.lost:
            return ()
        self._settle(now_s)
        self.tenants.clear()
        self.lost = True
        return (GpuDisappeared(self.identity.uuid),)

    def _recover(self) -> tuple[Event, ...]:
        was_lost, self.lost = self.lost, False
        self.recovery_action = RecoveryAction.NONE
        self.row_remap_pending = self.row_remap_failed = False
        self.corrected_ecc = self.uncorrectable_ecc = 0
        self.resets += 1
        return (GpuAppeared(self.identity.uuid),) if was_lost else ()

    def _load(self) -> float:
        return min(1.0, sum(tenant.utilization for _, tenant in self.tenants))

    def _memory_used_bytes(self) -> int:
        reserved = self.profile.memory_reserved_bytes or 0
        used = reserved + sum(int(tenant.memory_gib * GIB) for _, tenant in self.tenants)
        return min(used, self.identity.memory_bytes)

    def _power_w(self, load: float) -> float | None:
        limit_w = self.profile.power_w.default_limit
        if limit_w is None:
            return None
        idle_w = self.profile.power_w.idle or limit_w * IDLE_POWER_SHARE
        return round(idle_w + load * (limit_w - idle_w), 1)

    def _settle(self, now_s: float) -> None:
        """Bring the heat to `now_s` under the load since the last change."""
        target_c = FULL_LOAD_RISE_C * self._load()
        decay = math.exp(-(now_s - self._heat_at_s) / THERMAL_TIME_CONSTANT_S)
        self._heat_c = target_c + (self._heat_c - target_c) * decay
        self._heat_at_s = now_s
