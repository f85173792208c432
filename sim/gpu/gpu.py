"""One simulated GPU: identity, condition, and what faults do to it. No clock, no I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, assert_never

from hal import (
    GIB,
    CallFailure,
    ComputeProcess,
    EccError,
    Event,
    FabricState,
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
from hal.nvml.api import Code, NvmlError
from hal.nvml.calls import CALLS
from hal.nvml.failures import call_failure
from sim.gpu.faults import (
    ComputeModeChange,
    EccFault,
    Fabric,
    Hang,
    LostFault,
    Plug,
    Recovery,
    Returns,
    RowRemap,
    ThermalShutdown,
    Unplug,
    XidFault,
)
from sim.gpu.instances import placed
from sim.gpu.profiles import slice_parameters
from sim.gpu.returns import Returned
from sim.gpu.scheduler import until_s

if TYPE_CHECKING:
    from sim.gpu.faults import ConditionFault
    from sim.gpu.instances import GpuInstance
    from sim.gpu.physics import Physics
    from sim.gpu.profiles import Profile
    from sim.gpu.tenancy import Tenancy
    from sim.node.scenario import Tenant

_DOUBLE_BIT_XIDS = frozenset({48, 95, 171, 172})
_ROW_REMAPPED, _ROW_REMAP_FAILED, _OFF_THE_BUS = 63, 64, 79


@dataclass(slots=True)
class Use:
    """Sums over the schedulers of a GPU: nanoseconds of work and of switching, and where."""

    active_ns: int = 0
    switching_ns: int = 0
    places: set[str] = field(default_factory=set)
    """UUIDs of the GPU or its MIG devices whose tenants ran there."""

    def add(self, uuid: str, tenancy: Tenancy) -> None:
        """Add what the scheduler of a tenancy did up to now."""
        tenancy.compute.catch_up()
        usage = tenancy.compute.scheduler.usage
        self.active_ns += usage.active_ns
        self.switching_ns += usage.switching_ns
        self.places.add(uuid)


@dataclass(slots=True)
class SimulatedGpu:
    """State of one GPU; every method is given the model time in seconds where it matters."""

    identity: Gpu
    profile: Profile
    physics: Physics
    tenants: list[tuple[int, Tenant]] = field(default_factory=list)
    """Processes of constant load, as (pid, tenant)."""
    tenancies: dict[str, Tenancy] = field(default_factory=dict)
    """Tenants whose kernels compete, by the UUID of the GPU or of its MIG device."""
    instances: dict[int, GpuInstance] = field(default_factory=dict)
    """GPU instances by id; those with a compute instance are MIG devices of `identity`."""
    mig_pending: bool | None = None
    """The MIG mode that the next reset brings; None: that which it is in."""
    past: Use = field(default_factory=Use)
    """What its schedulers did on partitions that are gone."""
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
    fabric: Fabric | None = None
    """None for a GPU that is part of no NVLink fabric."""
    returned: Returned = field(default_factory=Returned)
    """What calls about it return in place of the truth."""
    _hung_until_s: float = -math.inf
    _loss_due_s: float = math.inf

    def __post_init__(self) -> None:
        self.instances = placed(self.identity.mig_devices, self.profile)
        if self.profile.has_fabric:
            self.fabric = Fabric(state=FabricState.COMPLETED)

    def listed(self) -> Gpu:
        gpu = self.identity
        if self.profile.unified_memory:
            gpu = replace(gpu, memory_bytes=None)
        return replace(gpu, state=GpuState.LOST) if self.lost else gpu

    def apply(  # noqa: C901 - one case for each kind
        self, what: ConditionFault, now_s: float
    ) -> tuple[Event, ...]:
        """Apply a fault; returns what the driver reports. Only recovery changes a lost GPU."""
        match what:
            case XidFault():
                return self._apply_xid(what, now_s)
            case EccFault(uncorrectable=uncorrectable):
                self._degrade(what, now_s)
                return (EccError(self.identity.uuid, uncorrectable),)
            case RowRemap() | Hang() | ThermalShutdown():
                self._degrade(what, now_s)
                return ()
            case LostFault():
                return self._lose(now_s)
            case Unplug():
                self.plugged = False
                return self._lose(now_s)
            case Plug():
                self.plugged = True
                return self._restart(now_s)
            case Returns(calls=calls, answer=answer, for_s=for_s, every=every, mig=mig):
                self.returned.add(calls, answer, now_s, for_s=for_s, every=every, mig=mig)
                return ()
            case ComputeModeChange(mode=mode):
                self.identity = replace(self.identity, compute_mode=mode)
                return ()
            case Fabric():
                self.fabric = what
                return ()
            case Recovery():
                self.row_remap_failed = False
                self.returned.clear()
                return self._restart(now_s)
            case _:
                assert_never(what)

    def elapse(self, now_s: float) -> tuple[Event, ...]:
        """Apply the delayed effects of earlier faults; returns what the driver reports."""
        return self._lose(now_s) if now_s >= self._loss_due_s else ()

    def hangs(self, now_s: float) -> bool:
        """True while calls about it do not return; a lost GPU fails them at once."""
        return not self.lost and now_s < self._hung_until_s

    def evict(self, now_s: float, why: str = "reset") -> None:
        self.settle(now_s)
        self.tenants.clear()
        for tenancy in self.tenancies.values():
            tenancy.kill_all(why)

    def repartition(self, identity: Gpu, tenancies: dict[str, Tenancy], now_s: float) -> None:
        """Other MIG devices, or none: processes end, and work is done elsewhere from now on."""
        self.evict(now_s, "repartitioned")
        self.set_devices(identity, tenancies, placed(identity.mig_devices, self.profile))
        self.mig_pending = None
        if not identity.mig_enabled:
            self.set_time_slice(self.time_slice)

    def set_devices(
        self, identity: Gpu, tenancies: dict[str, Tenancy], instances: dict[int, GpuInstance]
    ) -> None:
        """Other MIG devices; the tenancies of those that stay are the same objects."""
        for uuid in self.tenancies.keys() - tenancies.keys():
            self.past.add(uuid, self.tenancies[uuid])
        self.identity, self.tenancies, self.instances = identity, tenancies, instances
        self._follow_clocks()

    def use(self) -> Use:
        """What its schedulers did up to now, those of earlier partitions included."""
        use = replace(self.past, places=set(self.past.places))
        for uuid, tenancy in self.tenancies.items():
            use.add(uuid, tenancy)
        return use

    def settle(self, now_s: float) -> None:
        """Bring temperature and utilisation to the present."""
        for tenancy in self.tenancies.values():
            tenancy.sample()
        self.physics.settle(self.load, now_s)

    def set_time_slice(self, level: TimeSliceLevel) -> None:
        """Slices of another length for all tenants, those that run included."""
        self.time_slice = level
        for tenancy in self.tenancies.values():
            tenancy.set_slices(slice_parameters(self.profile, level))

    def govern(self, now_s: float) -> None:
        """Let the temperature move the clocks, and the clocks the tenants' speed."""
        self.settle(now_s)
        self.physics.govern()
        self._follow_clocks()

    @property
    def power_limit_w(self) -> float | None:
        """The limit that is in force; None where no source gives the board's own."""
        set_w = self.physics.limit_w
        return self.profile.power_w.default_limit if set_w is None else set_w

    def set_power_limit(self, limit_w: float, now_s: float) -> None:
        """Let the limit lower the clocks, and the clocks the tenants' speed, until a reset."""
        self.settle(now_s)
        self.physics.limit_w = limit_w
        self._follow_clocks()

    def replace(self, successor: str, now_s: float) -> tuple[Event, ...]:
        """Another GPU took its place; returns what the driver reports of this one."""
        self.replaced_by = successor
        return self._lose(now_s)

    def driver_loaded(self, now_s: float) -> None:
        """The driver was reloaded, which resets the GPU; one that is lost stays lost."""
        self._count_reset(now_s)
        if self.recovery_action is RecoveryAction.RESET:
            self.recovery_action = RecoveryAction.NONE

    def probe(self) -> Probe:
        """Whether the hardware is usable; a lost GPU reports no temperature."""
        return Probe(
            reachable=not self.lost,
            recovery_action=self.recovery_action,
            row_remap_pending=self.row_remap_pending,
            row_remap_failed=self.row_remap_failed,
            uncorrectable_ecc=self.uncorrectable_ecc,
            epoch=f"reset-{self.resets}",
            thermal_shutdown=self.overheated and not self.lost,
            fabric=None if self.fabric is None or self.lost else self.fabric.state,
            fabric_failure=None if self.lost else self._fabric_failure(),
        )

    def _fabric_failure(self) -> CallFailure | None:
        fabric = self.fabric
        if fabric is None or fabric.state is not FabricState.COMPLETED or fabric.code == "SUCCESS":
            return None
        call = CALLS["fabric"].function
        return call_failure(NvmlError(Code[str(fabric.code)], "the fabric has failed", call))

    def telemetry(self, now_s: float) -> Telemetry:
        self.settle(now_s)
        load, physics, clocks = self.load, self.physics, self.profile.clocks_mhz
        unified, total = self.profile.unified_memory, self.profile.memory_bytes
        used = self.memory_used_bytes
        busy = load > 0
        sm_mhz = clocks.sm_max and clocks.sm_max * physics.speed_ppm // 1_000_000
        reasons = physics.throttle_reasons(busy=busy)
        return Telemetry(
            utilization=load,
            memory_used_bytes=None if unified else used,
            memory_free_bytes=None if unified else total - used,
            memory_total_bytes=None if unified else total,
            temperature_c=physics.shutdown_c if self.overheated else physics.temperature_c,
            power_w=physics.power_w(load),
            power_limit_w=self.power_limit_w,
            energy_j=self.energy_j(now_s),
            sm_clock_mhz=sm_mhz if busy else clocks.sm_idle,
            memory_clock_mhz=clocks.memory,
            throttle_reasons=ThrottleReason.THERMAL_HARDWARE if self.overheated else reasons,
            corrected_ecc=self.corrected_ecc if self.profile.ecc else None,
            uncorrectable_ecc=self.uncorrectable_ecc if self.profile.ecc else None,
        )

    def energy_j(self, now_s: float) -> float | None:
        """What the board drew since its last reset; None where its power is not known."""
        self.settle(now_s)
        known = self.profile.power_w.default_limit is not None
        return self.physics.energy_j if known else None

    def processes(self) -> tuple[ComputeProcess, ...]:
        """Tenants as the driver lists them.

        Shares of a GPU whose tenants take turns add up to its utilisation at most: a constant load,
        which nothing slows down, is told with what is possible beside the others.
        """
        whole = self.tenancies.get(self.identity.uuid)
        side_by_side = whole is not None and whole.shares_faults
        told = sum(tenant.utilization for _, tenant in self.tenants)
        if whole is not None:
            told += sum(map(whole.sm_share, whole.tenants))
        scale = self.load / told if told > self.load and not side_by_side else 1.0
        constant = (
            ComputeProcess(
                pid,
                tenant.name,
                int(tenant.memory_gib * GIB),
                min(1.0, tenant.utilization * scale),
                graphics=tenant.graphics,
            )
            for pid, tenant in self.tenants
        )
        competing = (
            ComputeProcess(
                pid,
                tenant.spec.name,
                tenancy.memory.held_bytes.get(tenant.context, 0),
                tenancy.sm_share(pid) * (scale if tenancy is whole else 1.0),
                None if uuid == self.identity.uuid else uuid,
            )
            for uuid, tenancy in self.tenancies.items()
            for pid, tenant in tenancy.tenants.items()
        )
        return tuple(sorted((*constant, *competing), key=lambda process: process.pid))

    def _apply_xid(self, what: XidFault, now_s: float) -> tuple[Event, ...]:
        code, uuid = what.xid, self.identity.uuid
        if self.lost:
            return (XidError(uuid, code),)
        xid = lookup_xid(code)
        if xid.scope is XidScope.PROCESS:
            self.settle(now_s)
            self._kill_one(what)
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
            self.evict(now_s, f"xid {code}")
            self.recovery_action = RecoveryAction.RESET
        return (reported,)

    def _degrade(self, what: EccFault | RowRemap | Hang | ThermalShutdown, now_s: float) -> None:
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
                self.evict(now_s, "thermal shutdown")
                self.overheated = True
                self._loss_due_s = until_s(now_s, lost_after_s)
            case _:
                assert_never(what)

    def _lose(self, now_s: float) -> tuple[Event, ...]:
        if self.lost:
            return ()
        self.evict(now_s, "GPU lost")
        self.lost = True
        return (GpuDisappeared(self.identity.uuid),)

    def _restart(self, now_s: float) -> tuple[Event, ...]:
        was_lost, self.lost = self.lost, False
        self.recovery_action = RecoveryAction.NONE
        self._hung_until_s, self._loss_due_s = -math.inf, math.inf
        self.overheated = False
        self.fabric = self.fabric and Fabric(state=FabricState.COMPLETED)
        self._count_reset(now_s)
        return (GpuAppeared(self.identity.uuid),) if was_lost else ()

    def _count_reset(self, now_s: float) -> None:
        """Volatile counters are zero again, and pending row remaps are done."""
        self.settle(now_s)  # what it drew until now is of the time before
        self.resets += 1
        self.physics.limit_w = None
        self._follow_clocks()
        self.row_remap_pending = False
        self.corrected_ecc = self.uncorrectable_ecc = 0
        self.physics.energy_j = 0.0

    def _follow_clocks(self) -> None:
        for tenancy in self.tenancies.values():
            tenancy.set_clock(self.physics.speed_ppm)

    def _kill_one(self, what: XidFault) -> None:
        """An application error ends one process; under MPS all clients of the server."""
        why = f"xid {what.xid}"
        uuid = self.identity.uuid
        if what.mig is not None:
            uuid = self.identity.mig_devices[what.mig].uuid
        tenancy = self.tenancies.get(uuid)
        if tenancy is not None and tenancy.tenants:
            if tenancy.shares_faults:
                tenancy.kill_all(why)
            else:
                tenancy.kill_running(why)
        elif self.tenants:
            self.tenants.pop(0)

    @property
    def load(self) -> float:
        """Share of the last sample in which a kernel ran, 0 to 1."""
        constant = sum(tenant.utilization for _, tenant in self.tenants)
        shares = sum(
            tenancy.utilization * tenancy.compute_share for tenancy in self.tenancies.values()
        )
        return min(1.0, constant + shares)

    @property
    def memory_used_bytes(self) -> int:
        """Memory in use, with what the driver keeps for itself."""
        return self.tenants_bytes + (self.profile.memory_reserved_bytes or 0)

    @property
    def tenants_bytes(self) -> int:
        """Memory in use without what the driver keeps for itself."""
        used = sum(int(tenant.memory_gib * GIB) for _, tenant in self.tenants)
        used += sum(sum(tenancy.memory.held_bytes.values()) for tenancy in self.tenancies.values())
        return min(used, self.profile.memory_bytes - (self.profile.memory_reserved_bytes or 0))
