"""What sharing a GPU costs: equal closed-loop clients on a simpy clock, and their figures.

Clients begin at random moments. Between two works a client is off the GPU for half to one and a
half times the plan's idle time, at random: with a fixed time, clients that once meet would always
meet, and the seed alone would decide between no slowdown and the full one.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import simpy

from hal import GIB, TimeSliceLevel
from sim.gpu.calibration import calibrated
from sim.gpu.profiles import (
    Profile,
    instance_memory_bytes,
    load_profile,
    model_names,
    slice_parameters,
)
from sim.gpu.scheduler import NS_PER_MS, NS_PER_S, ContextId, GpuCompute, Usage
from sim.gpu.schedulers import Exclusive, Mps, usual_mps_share
from sim.gpu.tenancy import Memory, OutOfMemory
from sim.gpu.timeslicing import TimeSlicing
from sim.study.report import percentile

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from sim.gpu.calibration import Calibration
    from sim.gpu.profiles import MigProfile
    from sim.gpu.scheduler import Scheduler, SliceParameters


MOST_CLIENTS = 256
SHORTEST_BUSY_MS = 0.01
"""A launch alone takes some microseconds; shorter work would simulate launches, not slices."""
LONGEST_MS = 3_600_000.0
_MIG_SLICES = 7


class WrongPlan(ValueError):
    """Values that make no plan; the text says which, and what to do."""


class Mechanism(StrEnum):
    TIME_SLICING = "time-slicing"
    MPS = "mps"
    MIG = "mig"
    EXCLUSIVE = "exclusive"


@dataclass(frozen=True, slots=True)
class SharePlan:
    """`clients` equal closed loops: `busy_ms` of GPU work (alone), then `idle_ms` off the GPU.

    `idle_ms` is a mean: see `share`. `occupancy` (0 to 1) is how much of the GPU the work fills,
    `memory_gib` what each client holds beside its context. With MPS each client slows each other
    one down by `mps_share` (0 to 1) of its time alone; None: the usual one for the occupancy.
    `level` None is the default one. A `calibration` has what was measured of the GPU. Raises
    `UnknownModel`, and `WrongPlan` for values out of range or that the model does not have.
    """

    model: str
    clients: int
    busy_ms: float
    idle_ms: float = 0.0
    occupancy: float = 1.0
    memory_gib: float = 0.0
    mechanism: Mechanism = Mechanism.TIME_SLICING
    level: TimeSliceLevel | None = None
    seed: int = 0
    mps_share: float | None = None
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        _check_range("clients", self.clients, 1, MOST_CLIENTS)
        _check_range("busy-ms", self.busy_ms, SHORTEST_BUSY_MS, LONGEST_MS)
        _check_range("idle-ms", self.idle_ms, 0, LONGEST_MS)
        _check_range("occupancy", self.occupancy, 0, 1)
        _check_range("memory-gib", self.memory_gib, 0, 1024)
        if self.mps_share is not None:
            _check_range("mps-share", self.mps_share, 0, 1)
            if self.mechanism is not Mechanism.MPS:
                raise WrongPlan(
                    f"--mps-share has no meaning with {self.mechanism}: leave it out, or share by "
                    f"{Mechanism.MPS}"
                )
        profile = self.profile
        if self.mechanism is Mechanism.MIG and not profile.mig:
            models = ", ".join(name for name in model_names() if load_profile(name).mig)
            raise WrongPlan(f"{self.model} has no MIG; take one of: {models}")
        if self.level is None:
            return
        if self.mechanism is not Mechanism.TIME_SLICING:
            raise WrongPlan(
                f"a time-slice level has no meaning with {self.mechanism}: leave --level out, "
                f"or share by {Mechanism.TIME_SLICING}"
            )
        if not profile.has_levels:
            raise WrongPlan(f"{self.model} has no time-slice levels: leave --level out")

    @property
    def profile(self) -> Profile:
        return calibrated(load_profile(self.model), self.calibration)

    @property
    def measured_mps_share(self) -> float | None:
        """The one that is given, or else that of the calibration's command."""
        measured = self.calibration.mps if self.calibration is not None else None
        return measured.share if self.mps_share is None and measured is not None else self.mps_share

    @property
    def busy_ns(self) -> int:
        return round(self.busy_ms * NS_PER_MS)

    @property
    def idle_ns(self) -> int:
        return round(self.idle_ms * NS_PER_MS)

    @property
    def client_bytes(self) -> int:
        return self.profile.context_bytes + round(self.memory_gib * GIB)

    @property
    def slice_parameters(self) -> SliceParameters:
        return slice_parameters(self.profile, self.level or TimeSliceLevel.DEFAULT)


@dataclass(frozen=True, slots=True)
class GpuPart:
    """A GPU or one of its MIG devices, and what work on it is like.

    `work_ns` and `occupancy` are of a client's work there; `clients` are the numbers of those that
    share the part, from 0.
    """

    memory_bytes: int
    reserved_bytes: int
    work_ns: int
    occupancy: float
    clients: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Division:
    """The parts that clients run on; `mig` is the MIG profile of all of them, if they are MIG's."""

    parts: tuple[GpuPart, ...]
    mig: str | None = None


def divide(plan: SharePlan) -> Division:
    """The whole GPU; with MIG, the largest instances of which there is one for each client.

    With more clients than the smallest instances allow, several share an instance.
    """
    profile = plan.profile
    clients = tuple(range(plan.clients))
    if plan.mechanism is not Mechanism.MIG:
        reserved = profile.memory_reserved_bytes or 0
        whole = GpuPart(profile.memory_bytes, reserved, plan.busy_ns, plan.occupancy, clients)
        return Division((whole,))
    mig = instances_for(plan.clients, profile)
    fraction = fraction_of(mig, profile)
    work_ns = max(plan.busy_ns, math.ceil(plan.busy_ns * plan.occupancy / fraction))
    return Division(
        tuple(
            GpuPart(
                memory_bytes=instance_memory_bytes(mig, profile),
                reserved_bytes=0,
                work_ns=work_ns,
                occupancy=min(1.0, plan.occupancy / fraction),
                clients=clients[instance :: mig.instances],
            )
            for instance in range(min(plan.clients, mig.instances))
        ),
        mig.profile,
    )


def instances_for(clients: int, profile: Profile) -> MigProfile:
    # Profiles with a suffix have the same SMs and memory, and media engines that no client needs.
    plain = [mig for mig in profile.mig if "+" not in mig.profile]
    enough = [mig for mig in plain if mig.instances >= clients]
    if not enough:
        return max(plain, key=lambda mig: mig.instances)
    return max(
        enough, key=lambda mig: (fraction_of(mig, profile), instance_memory_bytes(mig, profile))
    )


def fraction_of(mig: MigProfile, profile: Profile) -> float:
    """Share of the GPU's SMs; where no source gives them, of its seven slices."""
    if mig.sm is None or profile.sm_count is None:
        return int(mig.profile.partition("g.")[0]) / _MIG_SLICES
    return mig.sm / profile.sm_count


def _check_range(name: str, value: float, least: float, most: float) -> None:
    # So written, it refuses NaN, too.
    if not least <= value <= most:
        raise WrongPlan(f"--{name} is {value:g}: give a number from {least:g} to {most:g}")


_WORKS = 20_000
"""Works of all clients together that are enough."""
_WORKS_PER_CLIENT = (60, 400)
_ROUNDS = (3, 100)
"""Rounds of slices at least, and as many as are wanted if they do not make too many works."""
_WARM_UP = 0.2
"""Share of the measured time that goes by before it begins; and a round and a cycle at least."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from a work's begin of waiting to its end; None if no client ran."""

    p50: float | None
    p95: float | None
    p99: float | None
    mean: float | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A client that did not get its memory: what it asked for, and who held what, by client."""

    client: int
    asked_bytes: int
    free_bytes: int
    holders: dict[int, int]


@dataclass(frozen=True, slots=True)
class ShareResult:
    """Figures of all clients that ran, without their warm-up.

    `slowdown_mean` is mean latency over the time alone. `gpu_utilization` is the share of time in
    which a kernel ran, `switch_loss` the share that went into switches; both are means over MIG
    devices in use. `latencies_ms` has every work, sorted.
    """

    slowdown_mean: float | None
    latency_ms: Latency
    throughput_per_client_per_s: float
    gpu_utilization: float
    switch_loss: float
    refused: tuple[Refused, ...]
    division: Division
    latencies_ms: tuple[float, ...]

    @property
    def oom(self) -> int:
        return len(self.refused)


def share(plan: SharePlan) -> ShareResult:
    """Let the clients of a plan run for some hundred works each."""
    return _Run(plan).result()


class _Run:
    def __init__(self, plan: SharePlan) -> None:
        self._plan = plan
        self._division = divide(plan)
        self._env = simpy.Environment()
        self._begin_ns, self._end_ns = _window(plan, self._division)
        self._gpus = [GpuCompute(self._env, _scheduler(plan)) for _ in self._division.parts]
        self._latencies_ns: list[int] = []
        self._refused: list[Refused] = []
        self._running = 0

    def result(self) -> ShareResult:
        for part, gpu in zip(self._division.parts, self._gpus, strict=True):
            self._start(part, gpu)
        self._env.run(until=self._begin_ns)
        before = [gpu.usage() for gpu in self._gpus]
        self._env.run(until=self._end_ns)
        return self._figures(before, [gpu.usage() for gpu in self._gpus])

    def _start(self, part: GpuPart, gpu: GpuCompute) -> None:
        """Clients come in a random order: who comes first has the memory."""
        plan = self._plan
        generators = {client: random.Random(f"{plan.seed}/{client}") for client in part.clients}
        cycle_ns = part.work_ns + plan.idle_ns
        offsets_ns = {client: generators[client].randrange(cycle_ns) for client in part.clients}
        memory = Memory(part.memory_bytes, part.reserved_bytes)
        for client in sorted(part.clients, key=lambda client: (offsets_ns[client], client)):
            if plan.mechanism is Mechanism.EXCLUSIVE:
                # Who has the GPU to itself has all of its memory, too.
                memory = Memory(part.memory_bytes, part.reserved_bytes)
            try:
                memory.allocate(ContextId(client), plan.client_bytes)
            except OutOfMemory as error:
                holders = {int(context): held for context, held in error.holders.items()}
                self._refused.append(Refused(client, error.asked_bytes, error.free_bytes, holders))
                continue
            self._running += 1
            self._env.process(
                self._client(client, part, gpu, offsets_ns[client], generators[client])
            )

    def _client(
        self, client: int, part: GpuPart, gpu: GpuCompute, offset_ns: int, generator: random.Random
    ) -> Generator[simpy.Event, object, None]:
        env, idle_ns, begin_ns = self._env, self._plan.idle_ns, self._begin_ns
        mps_share = self._plan.measured_mps_share
        yield env.timeout(offset_ns)
        while True:
            submitted_ns = env.now
            yield gpu.run(ContextId(client), part.work_ns, part.occupancy, mps_share)
            if env.now >= begin_ns:
                self._latencies_ns.append(int(env.now - submitted_ns))
            if idle_ns:
                yield env.timeout(round(idle_ns * generator.uniform(0.5, 1.5)))

    def _figures(self, before: Sequence[Usage], after: Sequence[Usage]) -> ShareResult:
        window_ns = self._end_ns - self._begin_ns
        elapsed_ns = window_ns * len(self._gpus)
        pairs = list(zip(before, after, strict=True))
        active_ns = sum(late.active_ns - early.active_ns for early, late in pairs)
        switching_ns = sum(late.switching_ns - early.switching_ns for early, late in pairs)
        latencies_ms = tuple(sorted(ns / NS_PER_MS for ns in self._latencies_ns))
        mean_ms = sum(latencies_ms) / len(latencies_ms) if latencies_ms else None
        p50, p95, p99 = (
            percentile(latencies_ms, share) if latencies_ms else None for share in (0.5, 0.95, 0.99)
        )
        client_s = self._running * window_ns / NS_PER_S
        return ShareResult(
            slowdown_mean=None if mean_ms is None else mean_ms * NS_PER_MS / self._plan.busy_ns,
            latency_ms=Latency(p50, p95, p99, mean_ms),
            throughput_per_client_per_s=len(latencies_ms) / client_s if client_s else 0.0,
            gpu_utilization=active_ns / elapsed_ns,
            switch_loss=switching_ns / elapsed_ns,
            refused=tuple(self._refused),
            division=self._division,
            latencies_ms=latencies_ms,
        )


def _scheduler(plan: SharePlan) -> Scheduler:
    if plan.mechanism is Mechanism.EXCLUSIVE:
        return Exclusive()
    if plan.mechanism is Mechanism.MPS:
        return Mps()
    return TimeSlicing(plan.slice_parameters)


def _window(plan: SharePlan, division: Division) -> tuple[int, int]:
    """Begin and end of the measurement, in nanoseconds.

    Some hundred works of each client and several rounds of slices. Bounded in works: many clients
    get fewer each, and short works fewer rounds.
    """
    part = division.parts[0]
    sharers, work_ns = len(part.clients), part.work_ns
    parameters = plan.slice_parameters
    switch_ns = parameters.switch_ns(part.occupancy, part.occupancy)
    busy_ns, round_ns = sharers * work_ns, 0
    if plan.mechanism is Mechanism.MPS:
        share = plan.measured_mps_share
        share = usual_mps_share(part.occupancy) if share is None else share
        busy_ns = math.ceil(work_ns * (1 + share * (sharers - 1)))
    elif plan.mechanism is not Mechanism.EXCLUSIVE and sharers > 1:
        # Who has work at once goes on in its slice; who has it later pays a switch for each.
        switches = max(work_ns / parameters.slice_ns, 1 if plan.idle_ns else 0)
        busy_ns += math.ceil(sharers * switches * switch_ns)
        round_ns = sharers * (parameters.slice_ns + switch_ns)
    cycle_ns = max(work_ns + plan.idle_ns, busy_ns)
    works = min(max(_WORKS // plan.clients, _WORKS_PER_CLIENT[0]), _WORKS_PER_CLIENT[1])
    works_per_round = plan.clients * round_ns / cycle_ns
    rounds = min(max(_WORKS / works_per_round, _ROUNDS[0]), _ROUNDS[1]) if round_ns else 0
    length_ns = max(works * cycle_ns, math.ceil(rounds * round_ns))
    warm_up_ns = max(round(length_ns * _WARM_UP), round_ns + 2 * cycle_ns)
    return warm_up_ns, warm_up_ns + length_ns
