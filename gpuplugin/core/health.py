"""The health machine of one GPU or MIG device: Healthy -> Unhealthy -> Recovering -> Healthy.

Pure transitions over events, probes and `now_s` (seconds of any monotonic clock). What counts as a
fault is in `faults`; the states of all GPUs of a node are in `healthboard`.

A fault makes it Unhealthy. A clean probe makes it Recovering, once what the fault's cure requires
was seen: for a reset, that the probe's epoch changed, that a counter of the driver fell back, or
that the hardware was down (unreachable, or with a recovery action pending) since the fault. After
the quiet period, and with another clean probe, it is Healthy again. Each relapse doubles the quiet
period, up to a cap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import Enum

from gpuplugin.core.faults import (
    CONTAINED_MEMORY_ERROR,
    Cause,
    Cure,
    Fault,
    ProbeChecks,
    XidPolicy,
    fault_of_ecc_count,
    fault_of_event,
    fault_of_probe,
)
from hal import Event, Probe, RecoveryAction, XidError


class HealthState(Enum):
    """Health of a GPU; the kubelet sees Healthy only for HEALTHY."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"
    RECOVERING = "Recovering"


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """Which faults count, and the periods of the machine.

    `quiet_period_s`: without a fault before a GPU is used again; doubled by each relapse up to
    `quiet_period_cap_s`. `flap_memory_s`: healthy for this long, earlier faults are forgotten.
    `hardware_checks`: whether ECC, row remapping, temperature and the driver's recovery action
    count; a GPU that does not respond always does. `fabric_check` and `confidential_check`: whether
    a GPU has to be ready for CUDA.
    """

    quiet_period_s: float = 30.0
    quiet_period_cap_s: float = 1800.0
    flap_memory_s: float = 3600.0
    xids: XidPolicy = field(default_factory=XidPolicy)
    hardware_checks: bool = True
    fabric_check: bool = True
    confidential_check: bool = True

    @property
    def probe_checks(self) -> ProbeChecks:
        return ProbeChecks(self.hardware_checks, self.fabric_check, self.confidential_check)

    @property
    def needs_events(self) -> bool:
        """False if nothing that the driver could report would change anything."""
        return self.hardware_checks or not self.xids.none_fatal


CONTAINED_WINDOW_S = 5.0
"""An uncorrectable ECC event and the Xid that calls it contained come within this time."""


@dataclass(frozen=True, slots=True)
class Health:
    """Health since `since_s`; `fault` is why it is not healthy.

    `faults` counts recent faults; `epoch` and `ecc_count` are those of the last probe;
    `reset_seen` is true once there was evidence of a reset since the fault; `obstacle` is what the
    last probe found wrong, None if it was clean; `contained_s` is when the driver last called a
    memory error contained, `ecc_reported` whether an event reported one since the last probe.
    """

    since_s: float
    state: HealthState = HealthState.HEALTHY
    fault: Fault | None = None
    faults: int = 0
    epoch: str | None = None
    ecc_count: int | None = None
    reset_seen: bool = False
    obstacle: Fault | None = None
    contained_s: float = -math.inf
    ecc_reported: bool = False

    @property
    def healthy(self) -> bool:
        return self.state is HealthState.HEALTHY

    @property
    def kinds(self) -> tuple[tuple[Cause, int | None], ...]:
        """Cause and Xid of what is wrong with it."""
        found = (self.fault, self.obstacle)
        return tuple((one.cause, one.xid) for one in found if one is not None)

    @property
    def needs_reset(self) -> bool:
        """True if only a reset, a reboot or a person can end the fault."""
        return self.fault is not None and self.fault.cure is Cure.RESET


class StillFaulty(Exception):
    """A state cannot be cleared: the hardware itself reports a fault now."""


def on_event(health: Health, event: Event, now_s: float, policy: HealthPolicy) -> Health:
    """The state after an event.

    Application Xids, corrected ECC events and the return of a GPU change nothing by themselves.
    """
    if isinstance(event, XidError) and event.xid == CONTAINED_MEMORY_ERROR:
        health = _contained(health, now_s)
    fault = fault_of_event(event, policy.xids, hardware_checks=policy.hardware_checks)
    if fault is None:
        return health
    match fault.cause:
        case Cause.ECC:
            health = replace(health, ecc_reported=True)
            if now_s - health.contained_s < CONTAINED_WINDOW_S:
                return health
        case Cause.LOST:
            return _fault(replace(health, obstacle=fault), fault, now_s, down=True)
    return _fault(health, fault, now_s, down=False)


def on_probe(health: Health, probe: Probe, now_s: float, policy: HealthPolicy) -> Health:
    obstacle = fault_of_probe(probe, policy.probe_checks)
    missed = None if health.ecc_reported else fault_of_ecc_count(health.ecc_count, probe)
    health = replace(_noted(health, probe), obstacle=obstacle, ecc_reported=False)
    if obstacle is not None:
        return _fault(health, obstacle, now_s, down=True)
    if missed is not None and policy.hardware_checks:
        return _fault(health, missed, now_s, down=False)
    match health.state:
        case HealthState.HEALTHY:
            forgiven = health.faults and now_s - health.since_s >= policy.flap_memory_s
            faults = 0 if forgiven else health.faults
            return replace(health, reset_seen=False, faults=faults)
        case HealthState.UNHEALTHY:
            if not _cured(health, probe):
                return health
            # What ended this fault must not count for the next one.
            return replace(health, state=HealthState.RECOVERING, since_s=now_s, reset_seen=False)
        case HealthState.RECOVERING:
            if now_s - health.since_s < quiet_period_s(health, policy):
                return replace(health, reset_seen=False)
            return Health(
                now_s, faults=health.faults, epoch=probe.epoch, ecc_count=health.ecc_count
            )


def cleared(health: Health, now_s: float) -> Health:
    """Healthy again, by a person; raises `StillFaulty` if the last probe was not clean."""
    if health.obstacle is not None:
        raise StillFaulty(health.obstacle.reason)
    return Health(now_s, epoch=health.epoch, ecc_count=health.ecc_count)


def quiet_period_s(health: Health, policy: HealthPolicy) -> float:
    """How long there must be no fault, given how often there was one lately."""
    doublings = min(max(health.faults - 1, 0), 32)
    period_s = policy.quiet_period_s * float(2**doublings)
    return min(period_s, policy.quiet_period_cap_s)


def _noted(health: Health, probe: Probe) -> Health:
    """What a probe shows besides faults: its epoch, and whether there was a reset before it."""
    restarted = health.epoch is not None and probe.epoch != health.epoch
    count = probe.uncorrectable_ecc
    # The driver counts from its load or the GPU's reset on: a count that fell began anew.
    fell_back = count is not None and health.ecc_count is not None and count < health.ecc_count
    return replace(
        health,
        epoch=probe.epoch,
        ecc_count=health.ecc_count if count is None else count,
        reset_seen=health.reset_seen or restarted or (probe.reachable and fell_back),
    )


def _cured(health: Health, probe: Probe) -> bool:
    if health.reset_seen or health.fault is None:
        return True
    match health.fault.cure:
        case Cure.CLEAN_PROBE:
            return True
        case Cure.DRIVERS_WORD:
            return probe.recovery_action is RecoveryAction.NONE
        case Cure.RESET:
            return False


def _contained(health: Health, now_s: float) -> Health:
    """The driver calls a memory error contained: an ECC event alone is then no fault."""
    fault = health.fault
    only_ecc = fault is not None and fault.cause is Cause.ECC
    recent = now_s - health.since_s < CONTAINED_WINDOW_S
    if health.state is HealthState.UNHEALTHY and only_ecc and recent and health.obstacle is None:
        faults = max(0, health.faults - 1)
        health = replace(
            health, state=HealthState.HEALTHY, since_s=now_s, fault=None, faults=faults
        )
    return replace(health, contained_s=now_s, ecc_reported=True)


def _fault(health: Health, fault: Fault, now_s: float, *, down: bool) -> Health:
    """Enter or stay in Unhealthy; there, only a fault of a stronger cure takes over the reason."""
    if health.state is not HealthState.UNHEALTHY or health.fault is None:
        return replace(
            health,
            state=HealthState.UNHEALTHY,
            since_s=now_s,
            fault=fault,
            faults=health.faults + 1,
            reset_seen=down,
        )
    stronger = fault.cure > health.fault.cure
    # A reset that was seen before a fault which needs one does not end that fault.
    kept = health.reset_seen and fault.cure is Cure.CLEAN_PROBE
    return replace(health, fault=fault if stronger else health.fault, reset_seen=kept or down)
