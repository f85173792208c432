"""What metrics show of workloads: series of pods become `Workload`s, with what they do not show.

A scrape sees the share of a period in which a pod's kernels ran, not single requests; and of a GPU
that others use at the same time it sees what a pod got, not what it wanted.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Literal, TypeAlias

from hal import GIB
from sim.advise.workload import HOUR_S, MOST_BUSY, Workload
from sim.study.sentences import counted, duration, number, percent
from sim.study.usage import owner_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sim.advise.workload import Arrival

By: TypeAlias = Literal["namespace", "workload"]

ACTIVE = 0.01
"""A pod whose kernels ran for less of a period did nothing: the driver's resolution."""
ALWAYS = 0.95
"""Who is active for more of the time is taken as always active."""
LEAST_ALONE = 10
"""So many samples in which a pod had the GPU to itself are enough to know what it wants."""
USUAL_REQUEST_MS = 20.0
MEMORY_SAMPLES = 60
LEAST_WINDOWS = 12
"""A history has so many windows of memory at least: hours, or less where it is shorter."""
GROWS = 1.02
"""Memory grew to the end if in the last quarter it was by this more than in the one before."""


class CannotRead(Exception):
    """No history can be had; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class PodSeries:
    """Values of one pod on one GPU: (seconds since the epoch, value), ascending.

    A process outside of pods has no namespace, a `pod` of its own, and an `owner`, its program.
    """

    namespace: str
    pod: str
    uuid: str
    samples: Sequence[tuple[float, float]]
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class History:
    """Of one or more nodes; `contending` is how many tenants had work on a GPU at a moment."""

    sm: Sequence[PodSeries]
    memory: Sequence[PodSeries]
    contending: Mapping[tuple[str, float], float]
    step_s: float

    @property
    def begin_s(self) -> float:
        return min((one.samples[0][0] for one in self.sm if one.samples), default=0.0)

    @property
    def length_s(self) -> float:
        end_s = max((one.samples[-1][0] for one in self.sm if one.samples), default=0.0)
        return end_s - self.begin_s


@dataclass(frozen=True, slots=True)
class Requests:
    """What the user knows of requests, which no history shows; None for what is assumed.

    `length_ms` is how long the GPU works on one, by workload, `usual_ms` of all others.
    """

    usual_ms: float | None = None
    length_ms: Mapping[str, float] = field(default_factory=dict)
    arrival: Arrival | None = None


def shown(history: History, source: str, requests: Requests) -> str:
    """What is in the history of the things that matter, and what is assumed instead."""
    span, step = duration(history.length_s), duration(history.step_s)
    assumed = ["occupancy and MPS share"]
    if requests.arrival is None:
        assumed.insert(0, "their arrival (each some time after the one before was done)")
    if requests.usual_ms is None:
        assumed.insert(0, f"the length of requests ({number(USUAL_REQUEST_MS)} ms)")
    return (
        f"{source.capitalize()}, {span} at {step}: shows for how much of the time each pod is "
        f"busy, bursts of {step} or more, memory with its growth, and when pods come and go. "
        f"Assumed: {', '.join(assumed)}."
    )


def workloads_of(
    history: History, by: By, requests: Requests, source: str
) -> tuple[list[Workload], list[str]]:
    """Workloads by namespace or by owner, and notes for people.

    `source` is what the history was read from.
    """
    grouped: dict[str, list[PodSeries]] = defaultdict(list)
    for one in history.sm:
        grouped[_key(one, by)].append(one)
    memory: dict[str, list[PodSeries]] = defaultdict(list)
    for one in history.memory:
        memory[_key(one, by)].append(one)
    found: list[Workload] = []
    notes: list[str] = []
    for key in sorted(grouped):
        workload, note = _workload(key, grouped[key], memory[key], history, requests, source)
        found.append(workload)
        notes.append(note)
    return found, notes


def _key(one: PodSeries, by: By) -> str:
    owner = owner_of(one.pod) if one.owner is None else one.owner
    if not one.namespace:
        return owner
    return one.namespace if by == "namespace" else f"{one.namespace}/{owner}"


def _workload(
    key: str,
    sm: Sequence[PodSeries],
    memory: Sequence[PodSeries],
    history: History,
    requests: Requests,
    source: str,
) -> tuple[Workload, str]:
    values = [value for one in sm for _, value in one.samples]
    busy = [value for value in values if value >= ACTIVE]
    alone = [
        value
        for one in sm
        for at_s, value in one.samples
        if value >= ACTIVE and history.contending.get((one.uuid, at_s), 0.0) <= 1
    ]
    known = len(alone) >= LEAST_ALONE
    seen = alone if known else busy
    share = min(MOST_BUSY, sum(seen) / len(seen)) if seen else ACTIVE
    # Work that waited for others was active for longer, and did not do more.
    active = min(1.0, sum(busy) / len(values) / share) if values else 0.0
    if active >= ALWAYS:
        active = 1.0
    count = _at_once(sm)
    window_s = min(HOUR_S, max(history.step_s, history.length_s / LEAST_WINDOWS))
    sizes = _sizes(memory, window_s)
    growth = _growth_gib_per_h(memory)
    request_ms = requests.length_ms.get(key, requests.usual_ms)
    assumed = {"occupancy", "mps_share"}
    if request_ms is None:
        assumed.add("busy_ms")
        request_ms = USUAL_REQUEST_MS
    if requests.arrival is None:
        assumed.add("arrival")
    if not known:
        assumed.add("share")
    if not sizes:
        assumed.add("memory")
    if growth:
        assumed.add("growth")
    workload = Workload(
        key,
        request_ms,
        request_ms / share,
        sizes or (0.0,),
        count,
        arrival=requests.arrival or "closed",
        active=active,
        with_context=True,
        memory_window_s=window_s,
        assumed=frozenset(assumed),
        source=source,
    )
    burst_s = _burst_s(sm, history.step_s)
    spans = f" in spans of {duration(burst_s)}" if burst_s else ""
    note = (
        f"{key}: {counted(count, 'pod')} at once, active for {percent(active)} of the time{spans}; "
        f"busy for {percent(share)} of an active period"
    )
    if not known and busy:
        note += ", measured while others used the GPU: it may want more"
    if sizes:
        note += f"; holds {number(sizes[0])} to {number(sizes[-1])} GiB"
    if growth:
        note += f", {number(growth)} more an hour to the end: it may need more than was seen"
    return workload, f"{note}{_arrivals(sm, history)}."


def _arrivals(series: Sequence[PodSeries], history: History) -> str:
    """How often pods came, in words; empty where all were there from the beginning."""
    lives = {(one.namespace, one.pod): one.samples for one in series if one.samples}
    late_s = history.begin_s + history.step_s
    came = [samples for samples in lives.values() if samples[0][0] > late_s]
    if not came:
        return ""
    stay_s = sum(one[-1][0] - one[0][0] + history.step_s for one in came) / len(came)
    within, stay = duration(history.length_s), duration(stay_s)
    return f"; {len(came)} came in {within} and stayed for {stay}"


def _at_once(series: Iterable[PodSeries]) -> int:
    """How many pods there were at once in all but 5 % of the time."""
    pods: dict[float, set[tuple[str, str]]] = defaultdict(set)
    for one in series:
        for at_s, _ in one.samples:
            pods[at_s].add((one.namespace, one.pod))
    counts = sorted(map(len, pods.values()))
    return max(1, counts[min(len(counts) - 1, int(0.95 * len(counts)))]) if counts else 1


def _sizes(series: Iterable[PodSeries], window_s: float) -> tuple[float, ...]:
    """The most that each pod held in each window, in GiB; so many quantiles of it at most."""
    windows: dict[tuple[str, str, str, int], float] = {}
    for one in series:
        for at_s, value in one.samples:
            key = (one.namespace, one.pod, one.uuid, int(at_s // window_s))
            windows[key] = max(windows.get(key, 0.0), value / GIB)
    ordered = sorted(windows.values())
    if len(ordered) <= MEMORY_SAMPLES:
        return tuple(ordered)
    last = len(ordered) - 1
    return tuple(ordered[round(i * last / (MEMORY_SAMPLES - 1))] for i in range(MEMORY_SAMPLES))


def _growth_gib_per_h(series: Iterable[PodSeries]) -> float:
    """How fast the memory of the pod that grows most still grew at its end; 0 if none did."""
    rates = [0.0]
    for one in series:
        quarter = len(one.samples) // 4
        if quarter < LEAST_ALONE:
            continue
        late = max(value for _, value in one.samples[-quarter:])
        before = max(value for _, value in one.samples[-2 * quarter : -quarter])
        if before and late > GROWS * before:
            # From the end of one quarter to the end of the other.
            elapsed_h = (one.samples[-1][0] - one.samples[-quarter - 1][0]) / HOUR_S
            rates.append((late - before) / GIB / elapsed_h)
    return max(rates)


def _burst_s(series: Iterable[PodSeries], step_s: float) -> float:
    """The mean length of spans in which a pod was active, at the resolution of the samples."""
    lengths = [length for one in series for length in _spans(one.samples)]
    return step_s * sum(lengths) / len(lengths) if lengths else 0.0


def _spans(samples: Iterable[tuple[float, float]]) -> Iterator[int]:
    for is_active, span in groupby(samples, key=lambda one: one[1] >= ACTIVE):
        if is_active:
            yield sum(1 for _ in span)
