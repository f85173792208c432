"""The health machine of one GPU: Healthy -> Unhealthy -> Recovering -> Healthy.

Pure transitions over events, probes and `now_s` (seconds of any monotonic clock). The states of all
GPUs of a node, and what an unnamed event does to them, are in `healthboard`.

A fault makes a GPU Unhealthy. A clean probe makes it Recovering; where the Xid asks for a reset or
a reboot, only once there is evidence of one: the probe's epoch changed, or the hardware was seen
down (unreachable, or with a recovery action pending) since the fault. After the quiet period, and
with another clean probe, it is Healthy again. Each relapse doubles the quiet period, up to a cap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from hal import EccError, Event, GpuAppeared, GpuDisappeared, Probe, XidAction, XidError, lookup_xid


class Status(Enum):
    """Health of a GPU; the kubelet is told Healthy only for HEALTHY."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"
    RECOVERING = "Recovering"


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """How patient the machine is.

    `quiet_period_s`: without a fault before a GPU is used again; doubled by each relapse up to
    `quiet_period_cap_s`. `flap_memory_s`: healthy for this long, earlier faults are forgotten.
    """

    quiet_period_s: float = 30.0
    quiet_period_cap_s: float = 1800.0
    flap_memory_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class GpuHealth:
    """Health of one GPU since `since_s`.

    `reason` and `action` are short texts, empty while healthy; `xid` is the code that caused the
    state, if one did. `faults` counts recent faults; `epoch` is that of the last probe; `down_seen`
    is true once the hardware was seen down, or under another epoch, since the fault.
    """

    since_s: float
    status: Status = Status.HEALTHY
    reason: str = ""
    action: str = ""
    xid: int | None = None
    needs_reset: bool = False
    faults: int = 0
    epoch: str | None = None
    down_seen: bool = False

    @property
    def healthy(self) -> bool:
        """True if its devices may be given out."""
        return self.status is Status.HEALTHY


_RESET_ACTIONS = frozenset(
    {
        XidAction.RESET_GPU,
        XidAction.ECC_WORKFLOW,
        XidAction.REBOOT_NODE,
        XidAction.RESTART_VM,
    }
)


def on_event(health: GpuHealth, event: Event, now_s: float) -> GpuHealth:
    """The state after an event of this GPU.

    Application Xids, ECC events (the Xid or the probe says whether they matter) and the return of
    a GPU change nothing by themselves.
    """
    match event:
        case XidError(xid=code):
            xid = lookup_xid(code)
            if xid.action.application_error:
                return health
            reason = f"Xid {code}: {xid.meaning}"
            needs_reset = xid.action in _RESET_ACTIONS
            action = xid.action.value
            return _fault(health, now_s, reason, action, needs_reset=needs_reset, xid=code)
        case GpuDisappeared():
            return _fault(
                replace(health, down_seen=True),
                now_s,
                "GPU lost",
                "reset-or-reboot",
                needs_reset=True,
                down_seen=True,
            )
        case EccError() | GpuAppeared():
            return health


def on_probe(health: GpuHealth, probe: Probe, now_s: float, policy: HealthPolicy) -> GpuHealth:
    """The state after looking at the hardware."""
    restarted = health.epoch is not None and probe.epoch != health.epoch
    health = replace(health, epoch=probe.epoch, down_seen=health.down_seen or restarted)
    if not probe.clean:
        reason, action = _why_not_clean(probe)
        return _fault(health, now_s, reason, action, needs_reset=False, down_seen=True)
    match health.status:
        case Status.HEALTHY:
            forgiven = health.faults and now_s - health.since_s >= policy.flap_memory_s
            return replace(health, down_seen=False, faults=0 if forgiven else health.faults)
        case Status.UNHEALTHY:
            if health.needs_reset and not health.down_seen:
                return health
            # What answered this fault must not count for the next one.
            return replace(health, status=Status.RECOVERING, since_s=now_s, down_seen=False)
        case Status.RECOVERING:
            if now_s - health.since_s < quiet_period_s(health, policy):
                return replace(health, down_seen=False)
            return GpuHealth(since_s=now_s, faults=health.faults, epoch=probe.epoch)


def quiet_period_s(health: GpuHealth, policy: HealthPolicy) -> float:
    """How long the GPU must stay without a fault, given how often it failed lately."""
    doublings = min(max(health.faults - 1, 0), 32)
    period_s = policy.quiet_period_s * float(2**doublings)
    return min(period_s, policy.quiet_period_cap_s)


def _fault(
    health: GpuHealth,
    now_s: float,
    reason: str,
    action: str,
    *,
    needs_reset: bool,
    xid: int | None = None,
    down_seen: bool = False,
) -> GpuHealth:
    """Enter or stay in Unhealthy; there, only a fault that needs a reset takes over the reason."""
    if health.status is Status.UNHEALTHY:
        graver = needs_reset and not health.needs_reset
        return replace(
            health,
            reason=reason if graver else health.reason,
            action=action if graver else health.action,
            xid=xid if graver else health.xid,
            needs_reset=health.needs_reset or needs_reset,
            down_seen=(health.down_seen and not needs_reset) or down_seen,
        )
    return replace(
        health,
        status=Status.UNHEALTHY,
        since_s=now_s,
        reason=reason,
        action=action,
        xid=xid,
        needs_reset=needs_reset,
        faults=health.faults + 1,
        down_seen=down_seen,
    )


def _why_not_clean(probe: Probe) -> tuple[str, str]:
    if not probe.reachable:
        return "GPU does not answer", "reset-or-reboot"
    if probe.row_remap_failed:
        return "memory row remapping failed", "contact-support"
    return "the driver asks for a recovery action", probe.recovery_action.value
