"""A cluster's trace replayed on a fleet of shared GPUs, and the report of the replay."""

from __future__ import annotations

import heapq
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from sim.gpu.scheduler import SliceParameters
from sim.study.report import fairness, percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sim.study.openb import FleetNode, FleetPod


def shares_of(
    demands: Sequence[float], parameters: SliceParameters, occupancy: float
) -> list[float]:
    """The share of the GPU that each tenant gets (0 to 1), given the shares that they want.

    `occupancy` is how much of the GPU their kernels fill, for the cost of a switch.
    """
    if sum(demands) <= 1.0 or len(demands) < 2:
        return [min(1.0, demand) for demand in demands]
    switch_ns = parameters.switch_ns(occupancy, occupancy)
    left = parameters.slice_ns / (parameters.slice_ns + switch_ns)
    got = [0.0] * len(demands)
    hungry = sorted(range(len(demands)), key=lambda index: demands[index])
    while hungry:
        even = left / len(hungry)
        index = hungry[0]
        if demands[index] > even:
            for rest in hungry:
                got[rest] = even
            break
        got[index] = demands[index]
        left -= demands[index]
        hungry.pop(0)
    return got


Policy: TypeAlias = Literal["packed", "distributed"]

_END, _COME = 0, 1


@dataclass(slots=True)
class Stay:
    """A pod in the fleet: when it was placed and left, and the share of its work that it got.

    `placed_s` is None for one that never found room. `work_s` is what it wanted of a GPU, in
    seconds of a whole one, `done_s` what it got.
    """

    pod: FleetPod
    placed_s: float | None = None
    left_s: float | None = None
    work_s: float = 0.0
    done_s: float = 0.0
    neighbours_most: int = 0


@dataclass(slots=True)
class _Gpu:
    whole: Stay | None = None
    tenants: list[Stay] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    at_s: float = 0.0
    version: int = 0
    busy_s: float = 0.0
    lost_s: float = 0.0


@dataclass(slots=True)
class _Machine:
    node: FleetNode
    gpus: list[_Gpu]
    cpu_milli: int
    memory_mib: int
    order: int


@dataclass(slots=True)
class FleetOutcome:
    """What came of a replay; GPU times are in seconds, added up over all GPUs."""

    replicas: int
    policy: Policy
    gpus: int
    span_s: float
    stays: list[Stay]
    gpu_busy_s: float = 0.0
    gpu_switching_s: float = 0.0
    gpus_used_most: int = 0


class Replay:
    """One replay; `occupancy` is what kernels fill of a GPU, of which the trace says nothing."""

    def __init__(
        self,
        nodes: Sequence[FleetNode],
        pods: Sequence[FleetPod],
        replicas: int,
        policy: Policy = "packed",
        occupancy: float = 1.0,
        parameters: SliceParameters | None = None,
    ) -> None:
        self._machines = [
            _Machine(
                node, [_Gpu() for _ in range(node.gpus)], node.cpu_milli, node.memory_mib, number
            )
            for number, node in enumerate(nodes)
        ]
        self._replicas = replicas
        self._policy: Policy = policy
        self._occupancy = occupancy
        self._parameters = parameters or SliceParameters()
        self._stays = [Stay(pod) for pod in pods]
        self._where: dict[int, tuple[_Machine, list[_Gpu]]] = {}
        self._waiting: deque[Stay] = deque()
        self._agenda: list[tuple[float, int, int, Stay, int]] = []
        self._numbers = 0
        self._used = 0
        self._used_most = 0

    def run(self, progress: Callable[[float], None] = lambda _share: None) -> FleetOutcome:
        """Replay all pods; `progress` is called with the share of pods that arrived."""
        for stay in self._stays:
            self._plan(stay.pod.created_s, _COME, stay, 0)
        last_s, came = 0.0, 0
        while self._agenda:
            now_s, kind, _, stay, version = heapq.heappop(self._agenda)
            if kind == _COME:
                last_s = now_s
                came += 1
                if came % 500 == 0:
                    progress(came / len(self._stays))
                if not self._place(stay, now_s):
                    self._waiting.append(stay)
            elif self._is_due(stay, version):
                last_s = now_s
                self._leave(stay, now_s)
                self._place_waiting(now_s)
        progress(1.0)
        gpus = [gpu for machine in self._machines for gpu in machine.gpus]
        return FleetOutcome(
            replicas=self._replicas,
            policy=self._policy,
            gpus=len(gpus),
            span_s=last_s,
            stays=self._stays,
            gpu_busy_s=sum(gpu.busy_s for gpu in gpus),
            gpu_switching_s=sum(gpu.lost_s for gpu in gpus),
            gpus_used_most=self._used_most,
        )

    def _plan(self, at_s: float, kind: int, stay: Stay, version: int) -> None:
        self._numbers += 1
        heapq.heappush(self._agenda, (at_s, kind, self._numbers, stay, version))

    def _place_waiting(self, now_s: float) -> None:
        """Waiting pods are tried in turn; one that does not fit does not hold up the others."""
        failed: set[tuple[int, int, int]] = set()
        still: deque[Stay] = deque()
        for stay in self._waiting:
            pod = stay.pod
            need = (pod.gpus, pod.cpu_milli, pod.memory_mib)
            # What did not fit a moment ago for one pod does not fit for its twin.
            if need in failed or not self._place(stay, now_s):
                failed.add(need)
                still.append(stay)
        self._waiting = still

    def _place(self, stay: Stay, now_s: float) -> bool:
        pod = stay.pod
        best: tuple[tuple[int, int, int], _Machine, list[_Gpu]] | None = None
        for machine in self._machines:
            if machine.cpu_milli < pod.cpu_milli or machine.memory_mib < pod.memory_mib:
                continue
            gpus = self._gpus_for(pod, machine)
            if gpus is None:
                continue
            free = sum(gpu.whole is None and not gpu.tenants for gpu in machine.gpus)
            score = (free, machine.cpu_milli, machine.order)
            if best is None or score < best[0]:
                best = (score, machine, gpus)
        if best is None:
            return False
        _, machine, gpus = best
        machine.cpu_milli -= pod.cpu_milli
        machine.memory_mib -= pod.memory_mib
        self._where[id(stay)] = (machine, gpus)
        stay.placed_s = now_s
        wanted = pod.share or 1.0
        stay.work_s = wanted * pod.life_s
        for gpu in gpus:
            if gpu.whole is None and not gpu.tenants:
                self._used += 1
                self._used_most = max(self._used_most, self._used)
        if pod.gpus:
            for gpu in gpus:
                gpu.whole, gpu.at_s = stay, now_s
            self._plan(now_s + pod.life_s, _END, stay, 0)
        else:
            self._settle(gpus[0], now_s)
            gpus[0].tenants.append(stay)
            self._reckon(gpus[0], now_s)
        return True

    def _gpus_for(self, pod: FleetPod, machine: _Machine) -> list[_Gpu] | None:
        if pod.gpus:
            free = [gpu for gpu in machine.gpus if gpu.whole is None and not gpu.tenants]
            return free[: pod.gpus] if len(free) >= pod.gpus else None
        room = [
            gpu for gpu in machine.gpus if gpu.whole is None and len(gpu.tenants) < self._replicas
        ]
        if not room:
            return None
        if self._policy == "packed":
            return [max(room, key=lambda gpu: len(gpu.tenants))]
        return [min(room, key=lambda gpu: len(gpu.tenants))]

    def _leave(self, stay: Stay, now_s: float) -> None:
        machine, gpus = self._where.pop(id(stay))
        machine.cpu_milli += stay.pod.cpu_milli
        machine.memory_mib += stay.pod.memory_mib
        for gpu in gpus:
            self._settle(gpu, now_s)
            if gpu.whole is stay:
                gpu.whole = None
            else:
                gpu.tenants.remove(stay)
                self._reckon(gpu, now_s)
            if gpu.whole is None and not gpu.tenants:
                self._used -= 1
        stay.left_s = now_s

    def _settle(self, gpu: _Gpu, now_s: float) -> None:
        """Bring a GPU's tenants to the present at the rates since the last change."""
        span_s = now_s - gpu.at_s
        gpu.at_s = now_s
        if gpu.whole is not None:
            gpu.busy_s += span_s
            gpu.whole.done_s = min(gpu.whole.work_s, gpu.whole.done_s + span_s)
            return
        for stay, rate in zip(gpu.tenants, gpu.rates, strict=True):
            stay.done_s += rate * span_s
        got = sum(gpu.rates)
        gpu.busy_s += got * span_s
        if sum(stay.pod.share for stay in gpu.tenants) > 1.0 and len(gpu.tenants) > 1:
            gpu.lost_s += (1.0 - got) * span_s

    def _reckon(self, gpu: _Gpu, now_s: float) -> None:
        """New rates, and when each tenant will end by them."""
        demands = [stay.pod.share for stay in gpu.tenants]
        gpu.rates = shares_of(demands, self._parameters, self._occupancy)
        gpu.version += 1
        for stay, rate in zip(gpu.tenants, gpu.rates, strict=True):
            stay.neighbours_most = max(stay.neighbours_most, len(gpu.tenants) - 1)
            if stay.pod.batch:
                ends_s = now_s + max(0.0, stay.work_s - stay.done_s) / rate
            else:
                placed_s = now_s if stay.placed_s is None else stay.placed_s
                ends_s = placed_s + stay.pod.life_s
            self._plan(max(now_s, ends_s), _END, stay, gpu.version)

    def _is_due(self, stay: Stay, version: int) -> bool:
        """False for an end that was reckoned before something changed."""
        if id(stay) not in self._where:
            return False
        _, gpus = self._where[id(stay)]
        return bool(stay.pod.gpus) or gpus[0].version == version


MINUTE_S = 60.0
HOUR_S = 3600.0


class Spread(BaseModel):
    model_config = ConfigDict(frozen=True)

    count: int
    min: float | None = None
    p5: float | None = None
    mean: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None


class FleetReport(BaseModel):
    """The figures of a replay.

    `pods_of_parts` asked for a part of a GPU and found room; `pods_sharing` of them had a neighbour
    at some time. `pods_waited` waited for more than a minute. Of pods that asked for a part,
    `slowdown` is time in the fleet against that in the trace, for those of kind batch;
    `demand_met` the share of the wanted GPU time that the others got; `fairness` Jain's index over
    what each got of what it wanted, 0 for one that never found room.
    """

    model_config = ConfigDict(frozen=True)

    replicas: int
    policy: str
    gpus: int
    span_h: float
    pods: int
    pods_of_parts: int
    pods_sharing: int
    pods_waited: int
    pods_never_placed: int
    wait_s: Spread
    slowdown: Spread
    demand_met: Spread
    neighbours_most: Spread
    fairness: float | None
    gpu_hours_busy: float
    gpu_hours_switching: float
    gpus_used_most: int


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """A replay, as plain values: it may run in another process."""

    nodes: Sequence[FleetNode]
    pods: Sequence[FleetPod]
    replicas: int
    policy: Policy = "packed"
    occupancy: float = 1.0


def replayed(plan: ReplayPlan) -> FleetReport:
    """Run it; a function of a module, for workers."""
    replay = Replay(plan.nodes, plan.pods, plan.replicas, plan.policy, plan.occupancy)
    return fleet_report(replay.run())


def fleet_report(outcome: FleetOutcome) -> FleetReport:
    placed = [stay for stay in outcome.stays if stay.placed_s is not None]
    parts = [stay for stay in placed if stay.pod.share]
    waits_s = [(stay.placed_s or 0.0) - stay.pod.created_s for stay in placed]
    left_out = sum(stay.placed_s is None and bool(stay.pod.share) for stay in outcome.stays)
    speeds = [*map(_speed, parts), *[0.0] * left_out]
    return FleetReport(
        replicas=outcome.replicas,
        policy=outcome.policy,
        gpus=outcome.gpus,
        span_h=outcome.span_s / HOUR_S,
        pods=len(outcome.stays),
        pods_of_parts=len(parts),
        pods_sharing=sum(stay.neighbours_most > 0 for stay in parts),
        pods_waited=sum(wait_s > MINUTE_S for wait_s in waits_s),
        pods_never_placed=len(outcome.stays) - len(placed),
        wait_s=spread(waits_s),
        slowdown=spread([1 / _speed(stay) for stay in parts if stay.pod.batch]),
        demand_met=spread([_speed(stay) for stay in parts if not stay.pod.batch]),
        neighbours_most=spread([float(stay.neighbours_most) for stay in parts]),
        fairness=fairness(speeds),
        gpu_hours_busy=outcome.gpu_busy_s / HOUR_S,
        gpu_hours_switching=outcome.gpu_switching_s / HOUR_S,
        gpus_used_most=outcome.gpus_used_most,
    )


def spread(values: Sequence[float]) -> Spread:
    if not values:
        return Spread(count=0)
    ordered = sorted(values)
    return Spread(
        count=len(ordered),
        min=ordered[0],
        p5=percentile(ordered, 0.05),
        mean=statistics.fmean(ordered),
        p50=percentile(ordered, 0.50),
        p95=percentile(ordered, 0.95),
        p99=percentile(ordered, 0.99),
        max=ordered[-1],
    )


def _speed(stay: Stay) -> float:
    if stay.placed_s is None or stay.left_s is None or not stay.pod.share:
        return 1.0
    wanted_s = stay.pod.share * (stay.left_s - stay.placed_s)
    return min(1.0, stay.done_s / wanted_s) if wanted_s > 0 else 1.0
