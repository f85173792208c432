"""The advice: what each number of replicas would cost, and the largest that keeps the goals."""

from __future__ import annotations

import math
import random
import statistics
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from hal import GIB, TimeSliceLevel
from sim.advise.trial import Trial, try_out
from sim.advise.workload import HOUR_S, MOST_BUSY, MOST_PODS, Workload
from sim.gpu.calibration import calibrated
from sim.gpu.profiles import load_profile
from sim.study.share import Mechanism

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sim.advise.trial import PodResult, TrialResult
    from sim.gpu.calibration import Calibration
    from sim.gpu.profiles import Profile
    from sim.study.workers import Workers

REPLICAS = (1, 2, 3, 4, 6, 8, 10, 16, 20)
HOURS_A_WEEK = 168
DRAWS = 8
"""Which pods share a GPU is drawn so often; once where all are alike."""
DRAWS_OF_VARIANTS = 2
"""The same for other mechanisms, and for what is assumed and may be otherwise."""
DRAWS_OF_ACTIVE = 24
"""The same where pods are not active all the time: who is, is drawn as well."""
MEMORY_DRAWS = 4_000


class WrongPlan(ValueError):
    """Values that make no plan; the text says which, and what to do."""


@dataclass(frozen=True, slots=True)
class Goals:
    """What is to be kept, on each GPU.

    95 of 100 requests of whichever pod suffers most take at most `slowdown_p95` times as long as
    alone; memory runs out at most `ooms_per_week` times; utilisation is `min_utilization` (0 to 1)
    at least, or there is something to say about it.
    """

    slowdown_p95: float = 2.0
    ooms_per_week: float = 0.01
    min_utilization: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Workloads on `gpus` GPUs of a model, or of the one that was measured (`calibration`).

    `memory_gib` replaces what the model has.
    """

    model: str
    workloads: tuple[Workload, ...]
    goals: Goals = Goals()
    gpus: int = 1
    mechanism: Mechanism = Mechanism.TIME_SLICING
    level: TimeSliceLevel = TimeSliceLevel.DEFAULT
    calibration: Calibration | None = None
    memory_gib: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.workloads:
            raise WrongPlan("no workload: give --workload, --record or --prometheus")
        if self.gpus < 1:
            raise WrongPlan(f"--gpus is {self.gpus}: give a number from 1 on")
        if self.count > MOST_PODS:
            raise WrongPlan(f"{self.count} pods are more than {MOST_PODS}")
        if not self.goals.slowdown_p95 >= 1:
            raise WrongPlan("--slowdown-p95: give a number from 1 on, which is as fast as alone")
        if not self.goals.ooms_per_week >= 0 or not 0 <= self.goals.min_utilization <= 1:
            raise WrongPlan("--oom-per-week is 0 or more, --min-utilization from 0 to 1")

    @property
    def count(self) -> int:
        return sum(one.count for one in self.workloads)

    @property
    def pods(self) -> list[Workload]:
        return [replace(one, count=1) for one in self.workloads for _ in range(one.count)]

    @property
    def profile(self) -> Profile:
        return calibrated(load_profile(self.model), self.calibration)

    @property
    def memory_bytes(self) -> int:
        """Memory that pods can have."""
        profile = self.profile
        total = profile.memory_bytes if self.memory_gib is None else round(self.memory_gib * GIB)
        return total - (profile.memory_reserved_bytes or 0)

    def sharing(self, replicas: int) -> int:
        """How many pods a GPU has then, where they are spread evenly."""
        return min(replicas, math.ceil(self.count / self.gpus))


@dataclass(frozen=True, slots=True)
class Row:
    """So many replicas of each GPU: what it costs whoever suffers most, and what else follows.

    Slowdowns are None where nothing was done. `refused` is the share of pods whose memory does not
    fit from the beginning; `left_out` are pods for which there is no replica.
    """

    replicas: int
    sharing: int
    p50: float | None
    p95: float | None
    p99: float | None
    ooms_per_week: float
    refused: float
    left_out: int
    utilization: float
    switching: float
    worst: str
    keeps: bool
    """Whether it keeps the goals."""
    contending: float = 0.0
    """Mean number of pods of a GPU of which the driver sees work in a sample of a second."""
    memory_mean_gib: float = 0.0
    """Of a GPU, what the driver keeps included; `memory_most_gib` is that of the worst draw."""
    memory_most_gib: float = 0.0
    sm_shares: Mapping[str, float] = field(default_factory=dict)
    """Mean share of the time in which a pod's work runs, by workload."""


@dataclass(frozen=True, slots=True)
class Assumption:
    """Something that is not known: the number of replicas if it were otherwise."""

    what: str
    otherwise: str
    replicas: int


@dataclass(frozen=True, slots=True)
class Advice:
    plan: Plan
    rows: tuple[Row, ...]
    replicas: int
    """0 if not even one keeps the goals."""
    others: Mapping[Mechanism, int]
    """The numbers of the other mechanisms that the model has."""
    assumptions: tuple[Assumption, ...]

    @property
    def row(self) -> Row | None:
        return next((row for row in self.rows if row.replicas == self.replicas), None)


def table_of(plan: Plan, workers: Workers) -> tuple[Row, ...]:
    """A row for every number of replicas, without other mechanisms and what is assumed."""
    return _tables({"": plan}, workers)[""]


def advise(
    plan: Plan, workers: Workers, progress: Callable[[float], None] = lambda _share: None
) -> Advice:
    """Try every number of replicas, other mechanisms, and what the assumptions mean."""
    variants = {"": plan, **dict(_others(plan)), **{key: one for key, _, one in _otherwise(plan)}}
    tables = _tables(variants, workers, progress)
    return Advice(
        plan,
        tables[""],
        best(tables[""]),
        {Mechanism(name): best(tables[name]) for name, _ in _others(plan)},
        tuple(
            Assumption(what, otherwise, best(tables[what + otherwise]))
            for key, (what, otherwise), _ in _otherwise(plan)
            if key
        ),
    )


def _tables(
    variants: Mapping[str, Plan],
    workers: Workers,
    progress: Callable[[float], None] = lambda _share: None,
) -> dict[str, tuple[Row, ...]]:
    every: list[tuple[str, int, Trial]] = [
        (name, sharing, trial)
        for name, one in variants.items()
        for sharing in sorted({one.sharing(replicas) for replicas in REPLICAS})
        for trial in trials(one, sharing, DRAWS_OF_VARIANTS if name else DRAWS)
    ]
    every += [(name, _ALONE, trial) for name, one in variants.items() for trial in alone(one)]
    # Draws in which the same pods meet, in whatever order, are one trial.
    different = list(dict.fromkeys(trial for _, _, trial in every))
    results = dict(zip(different, workers.results(try_out, different, progress), strict=True))
    found: dict[tuple[str, int], list[TrialResult]] = {}
    for name, sharing, trial in every:
        found.setdefault((name, sharing), []).append(results[trial])
    return {name: _rows(one, name, found) for name, one in variants.items()}


def best(rows: Sequence[Row]) -> int:
    """The largest number that keeps the goals, as do all that are smaller; 0 if none does."""
    found = 0
    for row in rows:
        if not row.keeps:
            break
        found = row.replicas
    return found


def trials(plan: Plan, sharing: int, draws: int) -> list[Trial]:
    """Which pods meet is drawn; with more pods on a GPU the same ones meet others."""
    pods = plan.pods
    alike = len(set(pods)) == 1
    changing = any(pod.active < 1 for pod in pods)
    made = []
    for draw in range(draws * DRAWS_OF_ACTIVE // DRAWS if changing else 1 if alike else draws):
        chance = random.Random(f"{plan.seed}/{draw}")
        order = chance.sample(pods, len(pods))
        # Drawn for all of them, so that more on a GPU leave the others as they are.
        drawn = [
            replace(pod, active=float(chance.random() < pod.active)) if changing else pod
            for pod in order
        ]
        made.append(
            Trial(
                plan.model,
                tuple(sorted(drawn[:sharing], key=lambda pod: (pod.name, -pod.active))),
                plan.mechanism,
                plan.level,
                plan.calibration,
                plan.seed,
                plan.memory_gib,
            )
        )
    return made


def alone(plan: Plan) -> list[Trial]:
    """A pod of each workload whose requests wait for each other even where it is alone."""
    return [
        Trial(
            plan.model,
            (replace(one, count=1, active=1.0),),
            Mechanism.EXCLUSIVE,
            calibration=plan.calibration,
            seed=plan.seed,
            memory_gib=plan.memory_gib,
        )
        for one in plan.workloads
        if one.arrival == "open"
    ]


def _rows(
    plan: Plan, name: str, found: Mapping[tuple[str, int], Sequence[TrialResult]]
) -> tuple[Row, ...]:
    pods = [pod for result in found.get((name, _ALONE), ()) for pod in result.pods]
    by_name = {pod.name: _percentiles([pod]) for pod in pods}
    return tuple(
        _row(plan, replicas, found[name, plan.sharing(replicas)], by_name) for replicas in REPLICAS
    )


def _row(
    plan: Plan,
    replicas: int,
    results: Sequence[TrialResult],
    alone_takes: Mapping[str, Sequence[float]],
) -> Row:
    sharing = plan.sharing(replicas)
    tried = [pod for result in results for pod in result.pods]
    slowdowns = {
        name: [one / other for one, other in zip(taken, alone_takes.get(name, _ONES), strict=True)]
        for name in dict.fromkeys(one.name for one in plan.workloads)
        if (taken := _percentiles([pod for pod in tried if pod.name == name]))
    }
    worst = max(slowdowns, key=lambda name: slowdowns[name][1], default="")
    p50, p95, p99 = slowdowns.get(worst, (None, None, None))
    if p95 is None and any(pod.active < 1 for pod in plan.pods):
        p95 = 1.0  # nobody had work in any draw
    sampled = {
        one.name: min(1.0, (_SAMPLE_MS + one.busy_ms) / one.period_ms) for one in plan.workloads
    }
    memory = memory_of(plan, sharing)
    ooms = memory.ooms_per_week
    refused = sum(not pod.fits for pod in tried) / max(1, len(tried))
    row = Row(
        replicas=replicas,
        sharing=sharing,
        p50=p50,
        p95=p95,
        p99=p99,
        ooms_per_week=ooms,
        refused=refused,
        left_out=max(0, plan.count - replicas * plan.gpus),
        utilization=statistics.fmean(result.utilization for result in results),
        switching=statistics.fmean(result.switching for result in results),
        worst=worst,
        keeps=False,
        contending=sum(pod.fits * pod.active * sampled[pod.name] for pod in tried) / len(results),
        memory_mean_gib=memory.mean_gib,
        memory_most_gib=memory.most_gib,
        sm_shares={
            one.name: statistics.fmean(shares)
            for one in plan.workloads
            if (shares := [pod.busy for pod in tried if pod.name == one.name])
        },
    )
    goals = plan.goals
    fast = p95 is not None and p95 <= goals.slowdown_p95
    return replace(row, keeps=fast and ooms <= goals.ooms_per_week and not refused)


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory of a GPU, what the driver keeps included, and how often a week it does not suffice."""

    mean_gib: float
    most_gib: float
    ooms_per_week: float


def memory_of(plan: Plan, sharing: int) -> MemoryUse:
    """The memory of so many pods, and how often it is short, if each sample is that of a window.

    Pods are drawn, and for each of them one of its samples; that they grow at the same time, as
    after one request for all, is not assumed.
    """
    pods, memory_bytes = plan.pods, plan.memory_bytes
    context_bytes = plan.profile.context_bytes
    reserved_gib = (plan.profile.memory_reserved_bytes or 0) / GIB
    if all(len(pod.memory_gib) == 1 for pod in pods):
        sizes = [pod.held_bytes(pod.memory_gib[0], context_bytes) for pod in pods]
        mean = sharing * statistics.fmean(sizes)
        needs = [sum(sorted(sizes, reverse=True)[:sharing])]
    else:
        chance = random.Random(f"{plan.seed}/memory")
        needs = []
        for _ in range(MEMORY_DRAWS):
            drawn = chance.sample(pods, sharing)
            needs.append(
                sum(pod.held_bytes(chance.choice(pod.memory_gib), context_bytes) for pod in drawn)
            )
        mean = statistics.fmean(needs)
    short = sum(need > memory_bytes for need in needs) / len(needs)
    if plan.mechanism is Mechanism.MIG:
        short = 0.0  # each has memory of its own; what does not fit is refused
    windows = HOURS_A_WEEK * HOUR_S / min(pod.memory_window_s for pod in pods)
    return MemoryUse(mean / GIB + reserved_gib, max(needs) / GIB + reserved_gib, windows * short)


def _others(plan: Plan) -> Iterator[tuple[str, Plan]]:
    for mechanism in Mechanism:
        if mechanism in (plan.mechanism, Mechanism.EXCLUSIVE):
            continue  # exclusive use is one replica
        if mechanism is Mechanism.MIG and not load_profile(plan.model).mig:
            continue
        yield mechanism.value, replace(plan, mechanism=mechanism)


def _otherwise(plan: Plan) -> Iterator[tuple[str, tuple[str, str], Plan]]:
    """Plans in which one thing that is assumed is otherwise: its key, in words, and the plan."""

    def changed(
        what: str, otherwise: str, change: Callable[[Workload], Workload]
    ) -> tuple[str, tuple[str, str], Plan]:
        workloads = tuple(map(change, plan.workloads))
        return what + otherwise, (what, otherwise), replace(plan, workloads=workloads)

    assumed = frozenset[str]().union(*(one.assumed for one in plan.workloads))
    yield changed("requests", "half as long, twice as often", lambda one: _paced(one, 0.5))
    yield changed("requests", "twice as long, half as often", lambda one: _paced(one, 2.0))
    if "arrival" in assumed:
        yield changed(
            "arrivals", "at random, whoever waits", lambda one: replace(one, arrival="open")
        )
    if "occupancy" in assumed and plan.mechanism is Mechanism.TIME_SLICING:
        yield changed(
            "occupancy", "a fifth of it", lambda one: replace(one, occupancy=one.occupancy / 5)
        )
    if "share" in assumed:
        yield changed("busy time", "half as much again where a pod was never alone", _busier)
    if any(0 < one.active < 1 for one in plan.workloads):
        yield changed("activity", "at the same moments for all pods", _always)
    yield changed("memory", "a fifth more", _larger)


def _paced(one: Workload, factor: float) -> Workload:
    return replace(one, busy_ms=one.busy_ms * factor, period_ms=one.period_ms * factor)


def _busier(one: Workload) -> Workload:
    if "share" not in one.assumed:
        return one
    return replace(one, period_ms=max(one.busy_ms / MOST_BUSY, one.period_ms / 1.5))


def _always(one: Workload) -> Workload:
    return replace(one, active=1.0) if one.active else one


def _larger(one: Workload) -> Workload:
    return replace(one, memory_gib=tuple(1.2 * size for size in one.memory_gib))


_SAMPLE_MS = 1000.0
_SHARES = (0.5, 0.95, 0.99)
_ONES = (1.0, 1.0, 1.0)
_ALONE = 0


def _percentiles(pods: Sequence[PodResult]) -> Sequence[float]:
    """p50, p95 and p99 of the slowdowns of all requests of pods; empty without requests."""
    weighted = sorted((slowdown, pod.requests) for pod in pods for slowdown in pod.slowdowns)
    if not weighted:
        return ()
    upto = list(accumulate(weight for _, weight in weighted))
    return [weighted[bisect_left(upto, share * upto[-1])][0] for share in _SHARES]
