"""Workloads of tenants: as scenarios write them, and as simpy processes in integer nanoseconds.

Times are those of the work alone on the GPU at full clocks. A driver submits work through `Bench`
and reports every request that was served; how the work competes with that of others is the GPU's.
"""

from __future__ import annotations

import csv
import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, TypeAlias

from pydantic import Field, model_validator

from sim.gpu.faults import ScenarioModel
from sim.gpu.scheduler import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from random import Random

    import simpy

    Driver: TypeAlias = Generator[simpy.Event, object, None]

Milliseconds = Annotated[float, Field(gt=0, le=86_400_000)]
Gap = Annotated[float, Field(ge=0, le=86_400_000)]
Rate = Annotated[float, Field(gt=0, le=1_000_000)]
Share = Annotated[float, Field(gt=0, le=1)]


class ClosedLoop(ScenarioModel):
    """Work, a pause, work again: a client that waits for the response. A pause of 0 saturates.

    Each pause is longer or shorter by up to `jitter` (0 to 1) of it.
    """

    kind: Literal["closed-loop"] = "closed-loop"
    busy_ms: Milliseconds
    idle_ms: Gap = 0.0
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.0


class Diurnal(ScenarioModel):
    """A rate that follows the day: 1 at `peak_hour`, `low` at the other end, a cosine between."""

    peak_hour: Annotated[float, Field(ge=0, lt=24)] = 15.0
    low: Share = 0.2


class OpenLoop(ScenarioModel):
    """Requests that arrive whether or not earlier ones are done, served one after the other.

    `arrivals`: `poisson`, or `regular`; each arrival brings `burst` requests.
    """

    kind: Literal["open-loop"] = "open-loop"
    busy_ms: Milliseconds
    per_s: Rate
    arrivals: Literal["poisson", "regular"] = "poisson"
    burst: Annotated[int, Field(ge=1, le=10_000)] = 1
    diurnal: Diurnal | None = None


class Training(ScenarioModel):
    """Steps with a pause on the host after each; every so many steps a checkpoint off the GPU."""

    kind: Literal["training"] = "training"
    step_ms: Milliseconds
    pause_ms: Gap = 0.0
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    checkpoint_s: Annotated[float, Field(ge=0)] = 30.0


class LlmDecode(ScenarioModel):
    """A language model server with continuous batching.

    Requests come at `per_s` (Poisson). A prefill takes `prefill_ms_per_1000` for each thousand
    tokens of its prompt; then one step of `step_ms` makes a token for every request in the batch.
    Token counts are geometric with the given means.
    """

    kind: Literal["llm-decode"] = "llm-decode"
    per_s: Rate
    prompt_tokens: Annotated[int, Field(ge=1)] = 1000
    output_tokens: Annotated[int, Field(ge=1)] = 200
    prefill_ms_per_1000: Milliseconds = 60.0
    step_ms: Milliseconds = 15.0
    max_batch: Annotated[int, Field(ge=1, le=1024)] = 32


class DutyCycle(ScenarioModel):
    """Busy for a share of each period."""

    kind: Literal["duty-cycle"] = "duty-cycle"
    period_ms: Milliseconds
    share: Share


class KernelTrace(ScenarioModel):
    """Kernels at the times of a CSV file, with columns `start_ms` and `duration_ms`, repeated."""

    kind: Literal["kernel-trace"] = "kernel-trace"
    file: str
    repeat: bool = False


Workload = Annotated[
    ClosedLoop | OpenLoop | Training | LlmDecode | DutyCycle | KernelTrace,
    Field(discriminator="kind"),
]
"""What a tenant does on its GPU."""


class MemoryUse(ScenarioModel):
    """What a tenant allocates at its start, and then.

    Its context takes `context_mib`; without it 300 MiB, or what the GPU's calibration says.
    It grows by `grow_gib` every `every_s` up to `most_gib`. An allocation that fails is an error
    that the tenant survives (`on_oom: survive`) or that ends it (`die`).
    """

    start_gib: Annotated[float, Field(ge=0)] = 1.0
    grow_gib: Annotated[float, Field(ge=0)] = 0.0
    every_s: Annotated[float, Field(gt=0)] = 1.0
    most_gib: Annotated[float, Field(ge=0)] | None = None
    context_mib: Annotated[float, Field(ge=0)] | None = None
    on_oom: Literal["die", "survive"] = "die"

    @model_validator(mode="after")
    def _grows_up_to_something(self) -> MemoryUse:
        if self.grow_gib and self.most_gib is None:
            raise ValueError("most_gib is needed where grow_gib is given: how far it grows")
        return self


DAY_S = 86_400


class Bench(Protocol):
    """What a driver works on: one context of one GPU."""

    env: simpy.Environment
    random: Random

    def work(self, work_ns: int) -> simpy.Event: ...

    def served(self, since_ns: int, work_ns: int) -> None:
        """A request that came at `since_ns`, of so much work alone, is done now."""


class TraceError(Exception):
    """A kernel trace cannot be read; the text names the file and what is wrong."""


def drive(workload: Workload, bench: Bench) -> Driver:
    """The process of a workload; it ends when the workload does, or when it is interrupted."""
    match workload:
        case ClosedLoop():
            return _closed_loop(workload, bench)
        case OpenLoop():
            return _open_loop(workload, bench)
        case Training():
            return _training(workload, bench)
        case LlmDecode():
            return _llm_decode(workload, bench)
        case DutyCycle():
            return _duty_cycle(workload, bench)
        case KernelTrace():
            return _kernel_trace(workload, bench)


def _ns(milliseconds: float) -> int:
    return max(1, round(milliseconds * NS_PER_MS))


def _now(bench: Bench) -> int:
    return int(bench.env.now)


def _pause(bench: Bench, milliseconds: float) -> simpy.Event:
    return bench.env.timeout(round(milliseconds * NS_PER_MS))


def _closed_loop(workload: ClosedLoop, bench: Bench) -> Driver:
    work_ns = _ns(workload.busy_ms)
    while True:
        since_ns = _now(bench)
        yield bench.work(work_ns)
        bench.served(since_ns, work_ns)
        if workload.idle_ms:
            jitter = workload.jitter
            factor = bench.random.uniform(1 - jitter, 1 + jitter) if jitter else 1.0
            yield _pause(bench, factor * workload.idle_ms)


def _training(workload: Training, bench: Bench) -> Driver:
    work_ns, steps = _ns(workload.step_ms), 0
    while True:
        since_ns = _now(bench)
        yield bench.work(work_ns)
        bench.served(since_ns, work_ns)
        steps += 1
        if workload.pause_ms:
            yield _pause(bench, workload.pause_ms)
        if workload.checkpoint_every and steps % workload.checkpoint_every == 0:
            yield bench.env.timeout(round(workload.checkpoint_s * NS_PER_S))


def _duty_cycle(workload: DutyCycle, bench: Bench) -> Driver:
    work_ns = _ns(workload.period_ms * workload.share)
    period_ns = _ns(workload.period_ms)
    due_ns = _now(bench)
    while True:
        since_ns = _now(bench)
        yield bench.work(work_ns)
        bench.served(since_ns, work_ns)
        due_ns += period_ns
        if due_ns > _now(bench):
            yield bench.env.timeout(due_ns - _now(bench))
        else:
            due_ns = _now(bench)  # a period that was missed is not made up for


def _open_loop(workload: OpenLoop, bench: Bench) -> Driver:
    """One server; arrivals that came while it worked wait in their order."""
    work_ns = _ns(workload.busy_ms)
    arrivals = _arrivals(workload, bench.random, _now(bench))
    waiting: deque[int] = deque()
    next_ns = next(arrivals)
    while True:
        while next_ns <= _now(bench):
            waiting.extend([next_ns] * workload.burst)
            next_ns = next(arrivals)
        if not waiting:
            yield bench.env.timeout(next_ns - _now(bench))
            continue
        since_ns = waiting.popleft()
        yield bench.work(work_ns)
        bench.served(since_ns, work_ns)


def _arrivals(workload: OpenLoop, random: Random, start_ns: int) -> Iterator[int]:
    """Moments of arrival. A rate that follows the day thins out those of the peak."""
    at_s = start_ns / NS_PER_S
    while True:
        regular = workload.arrivals == "regular"
        at_s += 1 / workload.per_s if regular else random.expovariate(workload.per_s)
        if workload.diurnal is None or random.random() < _daily(workload.diurnal, at_s):
            yield round(at_s * NS_PER_S)


def _daily(diurnal: Diurnal, at_s: float) -> float:
    angle = 2 * math.pi * (at_s / DAY_S - diurnal.peak_hour / 24)
    return diurnal.low + (1 - diurnal.low) * (1 + math.cos(angle)) / 2


def _llm_decode(workload: LlmDecode, bench: Bench) -> Driver:
    """Prefills come first, one at a time; then the whole batch makes a token in one step."""
    random = bench.random
    step_ns = _ns(workload.step_ms)
    next_ns = _now(bench) + max(1, round(random.expovariate(workload.per_s) * NS_PER_S))
    waiting: deque[int] = deque()
    batch: list[_Sequence] = []
    while True:
        while next_ns <= _now(bench):
            waiting.append(next_ns)
            next_ns += max(1, round(random.expovariate(workload.per_s) * NS_PER_S))
        if waiting and len(batch) < workload.max_batch:
            since_ns = waiting.popleft()
            prompt = _geometric(random, workload.prompt_tokens)
            prefill_ns = _ns(workload.prefill_ms_per_1000 * prompt / 1000)
            yield bench.work(prefill_ns)
            tokens = _geometric(random, workload.output_tokens)
            batch.append(_Sequence(since_ns, tokens, prefill_ns + tokens * step_ns))
        elif batch:
            yield bench.work(step_ns)
            for sequence in batch:
                sequence.tokens_left -= 1
            for sequence in [one for one in batch if not one.tokens_left]:
                bench.served(sequence.since_ns, sequence.alone_ns)
            batch = [one for one in batch if one.tokens_left]
        else:
            yield bench.env.timeout(next_ns - _now(bench))


@dataclass(slots=True)
class _Sequence:
    """A request in the batch: when it came, tokens to make, and its work without others."""

    since_ns: int
    tokens_left: int
    alone_ns: int


def _geometric(random: Random, mean: int) -> int:
    if mean == 1:
        return 1
    return 1 + int(math.log(1.0 - random.random()) / math.log(1.0 - 1.0 / mean))


def _kernel_trace(workload: KernelTrace, bench: Bench) -> Driver:
    """Each kernel is submitted at its time, or when the one before it is done."""
    kernels = read_kernels(workload.file)
    while True:
        begin_ns = _now(bench)
        for start_ns, work_ns in kernels:
            due_ns = begin_ns + start_ns
            if due_ns > _now(bench):
                yield bench.env.timeout(due_ns - _now(bench))
            yield bench.work(work_ns)
            bench.served(due_ns, work_ns)
        if not workload.repeat:
            return


def read_kernels(file: str) -> list[tuple[int, int]]:
    """(start, work) of a trace's kernels in nanoseconds, from 0 on; raises `TraceError`."""
    try:
        with Path(file).open(encoding="utf-8", newline="") as stream:
            rows = [
                (float(row["start_ms"]), float(row["duration_ms"]))
                for row in csv.DictReader(stream)
            ]
    except KeyError as error:
        raise TraceError(
            f"{file}: there is no column {error}; need start_ms and duration_ms"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise TraceError(f"{file}: {error}") from error
    if not rows or any(not math.isfinite(value) for row in rows for value in row):
        raise TraceError(f"{file}: needs at least one kernel, with finite numbers")
    rows.sort()
    first_ms = rows[0][0]
    return [(round((start - first_ms) * NS_PER_MS), _ns(length)) for start, length in rows]
