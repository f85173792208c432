"""What a replay showed, in figures: waits, slowdowns, unmet demand, use of the fleet."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.study.fleet.replay import FleetOutcome, Stay

HOUR_S = 3600.0


class Spread(BaseModel):
    """A distribution; all None without values."""

    model_config = ConfigDict(frozen=True)

    count: int
    min: float | None = None
    mean: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None


class FleetReport(BaseModel):
    """The figures of a replay.

    `slowdown` is time in the fleet against that in the trace, of pods of kind batch that share a
    GPU; `demand_met` the share of the wanted GPU time that other sharing pods got. `fairness` is
    Jain's index over what sharing pods got of what they wanted.
    """

    model_config = ConfigDict(frozen=True)

    replicas: int
    policy: str
    gpus: int
    span_h: float
    pods: int
    pods_sharing: int
    pods_never_placed: int
    wait_s: Spread
    slowdown: Spread
    demand_met: Spread
    neighbours_most: Spread
    fairness: float | None
    gpu_hours_busy: float
    gpu_hours_switching: float
    gpus_used_most: int


def fleet_report(outcome: FleetOutcome) -> FleetReport:
    """The figures."""
    placed = [stay for stay in outcome.stays if stay.placed_s is not None]
    sharing = [stay for stay in placed if stay.pod.share]
    speeds = [_speed(stay) for stay in sharing]
    return FleetReport(
        replicas=outcome.replicas,
        policy=outcome.policy,
        gpus=outcome.gpus,
        span_h=outcome.span_s / HOUR_S,
        pods=len(outcome.stays),
        pods_sharing=len(sharing),
        pods_never_placed=len(outcome.stays) - len(placed),
        wait_s=spread([(stay.placed_s or 0.0) - stay.pod.created_s for stay in placed]),
        slowdown=spread([1 / _speed(stay) for stay in sharing if stay.pod.batch]),
        demand_met=spread([_speed(stay) for stay in sharing if not stay.pod.batch]),
        neighbours_most=spread([float(stay.neighbours_most) for stay in sharing]),
        fairness=jain(speeds),
        gpu_hours_busy=outcome.gpu_busy_s / HOUR_S,
        gpu_hours_switching=outcome.gpu_switching_s / HOUR_S,
        gpus_used_most=outcome.gpus_used_most,
    )


def jain(values: Sequence[float]) -> float | None:
    """Jain's fairness index: 1 if all are alike, 1/n if one has everything; None without values."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else None


def spread(values: Sequence[float]) -> Spread:
    """The distribution of values."""
    if not values:
        return Spread(count=0)
    ordered = sorted(values)
    return Spread(
        count=len(ordered),
        min=ordered[0],
        mean=statistics.fmean(ordered),
        p50=_at(ordered, 0.50),
        p95=_at(ordered, 0.95),
        p99=_at(ordered, 0.99),
        max=ordered[-1],
    )


def _at(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least that share of the values does not exceed."""
    return ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)]


def _speed(stay: Stay) -> float:
    """The share of full speed that a pod had over its stay."""
    if stay.placed_s is None or stay.left_s is None or not stay.pod.share:
        return 1.0
    wanted_s = stay.pod.share * (stay.left_s - stay.placed_s)
    return min(1.0, stay.done_s / wanted_s) if wanted_s > 0 else 1.0
