"""A trial: some pods share one GPU for a while, and what that costs each of them.

As `sim.study.share`, but for pods that differ.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import simpy

from hal import GIB, TimeSliceLevel
from sim.gpu.calibration import calibrated
from sim.gpu.profiles import instance_memory_bytes, load_profile, slice_parameters
from sim.gpu.scheduler import NS_PER_MS, ContextId, GpuCompute
from sim.gpu.schedulers import Exclusive, Mps
from sim.gpu.tenancy import Memory, OutOfMemory
from sim.gpu.timeslicing import TimeSlicing
from sim.study.report import percentile
from sim.study.share import Mechanism, fraction_of, instances_for

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from sim.advise.workload import Workload
    from sim.gpu.calibration import Calibration
    from sim.gpu.profiles import Profile
    from sim.gpu.scheduler import Scheduler

WORKS = 4_000
"""Works of all pods together in a trial."""
WORKS_OF_EACH = 40
"""At least so many of the pod that has the fewest."""
MOST_WORKS = 24_000
LEAST_PERIODS = 10
"""So many of the slowest pod at least, or its work might not be seen beside that of quick ones."""
QUANTILES = 100
_WARM_UP = 0.1


@dataclass(frozen=True, slots=True)
class Trial:
    """`pods` share one GPU of a model; picklable, as it may run in another process.

    One whose `active` is 0 holds its memory and does nothing.
    """

    model: str
    pods: tuple[Workload, ...]
    mechanism: Mechanism = Mechanism.TIME_SLICING
    level: TimeSliceLevel = TimeSliceLevel.DEFAULT
    calibration: Calibration | None = None
    seed: int = 0
    memory_gib: float | None = None
    """In place of that of the model."""


@dataclass(frozen=True, slots=True)
class PodResult:
    """What became of a pod: `busy` is the share of the time in which its work ran.

    `slowdowns` are those of its `requests` as evenly spaced quantiles, ascending: latencies over
    the work alone, none for a pod that had nothing done. With open arrivals a request waits for
    those of its own pod before it as well.
    """

    name: str
    fits: bool
    active: bool
    busy: float
    requests: int
    slowdowns: tuple[float, ...]

    @property
    def p95(self) -> float | None:
        return percentile(self.slowdowns, 0.95) if self.slowdowns else None


@dataclass(frozen=True, slots=True)
class TrialResult:
    pods: tuple[PodResult, ...]
    utilization: float
    switching: float
    """Share of the time that went into switches."""


def try_out(trial: Trial) -> TrialResult:
    """Run it; a function of a module, for workers."""
    return _Run(trial).result()


@dataclass(slots=True)
class _Pod:
    workload: Workload
    gpu: GpuCompute
    work_ns: int
    occupancy: float
    fits: bool
    latencies_ns: list[int]


class _Run:
    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._env = simpy.Environment()
        self._profile = calibrated(load_profile(trial.model), trial.calibration)
        self._gpus: list[GpuCompute] = []
        self._pods = list(self._placed())
        self._begin_ns, self._end_ns = _window(trial.pods)

    def result(self) -> TrialResult:
        env = self._env
        for number, pod in enumerate(self._pods):
            if pod.fits and pod.workload.active:
                chance = random.Random(f"{self._trial.seed}/{number}")
                drive = self._closed if pod.workload.arrival == "closed" else self._open
                env.process(drive(ContextId(number), pod, chance))
        env.run(until=self._begin_ns)
        before = [gpu.usage() for gpu in self._gpus]
        env.run(until=self._end_ns)
        after = [gpu.usage() for gpu in self._gpus]
        elapsed_ns = (self._end_ns - self._begin_ns) * max(1, len(self._gpus))
        pairs = list(zip(before, after, strict=True))
        busy_ns = dict.fromkeys(map(ContextId, range(len(self._pods))), 0)
        for early, late in pairs:
            for context, until_ns in late.busy_ns.items():
                busy_ns[context] += until_ns - early.busy_ns.get(context, 0)
        window_ns = self._end_ns - self._begin_ns
        return TrialResult(
            tuple(
                _result(pod, spent_ns / window_ns)
                for pod, spent_ns in zip(self._pods, busy_ns.values(), strict=True)
            ),
            sum(late.active_ns - early.active_ns for early, late in pairs) / elapsed_ns,
            sum(late.switching_ns - early.switching_ns for early, late in pairs) / elapsed_ns,
        )

    def _placed(self) -> Generator[_Pod, None, None]:
        """Pods on the GPU or its MIG devices, in the order in which they take memory."""
        trial, profile = self._trial, self._profile
        total_bytes = (
            profile.memory_bytes if trial.memory_gib is None else round(trial.memory_gib * GIB)
        )
        if trial.mechanism is Mechanism.MIG:
            mig = instances_for(len(trial.pods), profile)
            fraction = fraction_of(mig, profile)
            count = min(len(trial.pods), mig.instances)
            memories = [Memory(instance_memory_bytes(mig, profile)) for _ in range(count)]
        else:
            fraction, count = 1.0, 1
            memories = [Memory(total_bytes, profile.memory_reserved_bytes or 0)]
        self._gpus = [GpuCompute(self._env, _scheduler(trial, profile)) for _ in range(count)]
        for number, workload in enumerate(trial.pods):
            place = number % count
            memory = memories[place]
            if trial.mechanism is Mechanism.EXCLUSIVE:
                memory = Memory(total_bytes, profile.memory_reserved_bytes or 0)
            try:
                size = workload.held_bytes(max(workload.memory_gib), profile.context_bytes)
                memory.allocate(ContextId(number), size)
                fits = True
            except OutOfMemory:
                fits = False
            scale = max(1.0, workload.occupancy / fraction)
            yield _Pod(
                workload,
                self._gpus[place],
                max(1, round(workload.busy_ms * scale * NS_PER_MS)),
                min(1.0, workload.occupancy / fraction),
                fits,
                [],
            )

    def _closed(
        self, context: ContextId, pod: _Pod, chance: random.Random
    ) -> Generator[simpy.Event, object, None]:
        env, workload = self._env, pod.workload
        idle_ns = round((workload.period_ms - workload.busy_ms) * NS_PER_MS)
        yield env.timeout(chance.randrange(pod.work_ns + idle_ns + 1))
        while True:
            since_ns = env.now
            yield pod.gpu.run(context, pod.work_ns, pod.occupancy, workload.mps_share)
            if env.now >= self._begin_ns:
                pod.latencies_ns.append(int(env.now - since_ns))
            if idle_ns:
                yield env.timeout(round(idle_ns * chance.uniform(0.5, 1.5)))

    def _open(
        self, context: ContextId, pod: _Pod, chance: random.Random
    ) -> Generator[simpy.Event, object, None]:
        """Requests come at random and are served in turn; `due_ns` is when the next one comes."""
        env, rate = self._env, 1 / (pod.workload.period_ms * NS_PER_MS)
        due_ns = round(chance.expovariate(rate))
        while True:
            if due_ns > env.now:
                yield env.timeout(due_ns - env.now)
            yield pod.gpu.run(context, pod.work_ns, pod.occupancy, pod.workload.mps_share)
            if env.now >= self._begin_ns:
                pod.latencies_ns.append(int(env.now - due_ns))
            due_ns += max(1, round(chance.expovariate(rate)))


def _scheduler(trial: Trial, profile: Profile) -> Scheduler:
    match trial.mechanism:
        case Mechanism.EXCLUSIVE:
            return Exclusive()
        case Mechanism.MPS:
            return Mps()
        case _:
            return TimeSlicing(slice_parameters(profile, trial.level))


def _window(pods: Sequence[Workload]) -> tuple[int, int]:
    """Begin and end of what is measured, in nanoseconds."""
    periods_ms = [pod.period_ms for pod in pods if pod.active] or [1.0]
    per_ms = sum(1 / period_ms for period_ms in periods_ms)
    length_ms = max(WORKS / per_ms, WORKS_OF_EACH * max(periods_ms))
    length_ms = max(min(length_ms, MOST_WORKS / per_ms), LEAST_PERIODS * max(periods_ms))
    warm_ms = max(_WARM_UP * length_ms, 2 * max(periods_ms))
    return round(warm_ms * NS_PER_MS), round((warm_ms + length_ms) * NS_PER_MS)


def _result(pod: _Pod, busy: float) -> PodResult:
    one, ordered = pod.workload, sorted(pod.latencies_ns)
    alone_ns = one.busy_ms * NS_PER_MS
    shares = ((number + 0.5) / QUANTILES for number in range(QUANTILES if ordered else 0))
    slowdowns = tuple(percentile(ordered, share) / alone_ns for share in shares)
    return PodResult(one.name, pod.fits, bool(one.active), busy, len(ordered), slowdowns)
