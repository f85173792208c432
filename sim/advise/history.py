"""What metrics show of workloads: series of pods become `Workload`s, with what they do not show.

A scrape sees the share of a period in which a pod's kernels ran, not single requests; and of a GPU
that others use at the same time it sees what a pod got, not what it wanted.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal, TypeAlias

from hal import GIB
from sim.advise.workload import Workload
from sim.study.sentences import counted, duration, number, percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

By: TypeAlias = Literal["namespace", "workload"]

ACTIVE = 0.01
"""A pod whose kernels ran for less of a period did nothing: the driver's resolution."""
MOST_BUSY = 0.98
"""Nothing is busier, for requests have some time between them."""
LEAST_ALONE = 10
"""So many samples in which a pod had the GPU to itself are enough to know what it wants."""
MEMORY_SAMPLES = 60
HOUR_S = 3600.0

_OWNED = (
    re.compile(r"-[0-9a-f]{8,10}-[a-z0-9]{5}$"),  # a Deployment's
    re.compile(r"-\d+$"),  # a StatefulSet's, or an indexed Job's
    re.compile(r"-[a-z0-9]{5}$"),  # a DaemonSet's or a Job's
)


@dataclass(frozen=True, slots=True)
class PodSeries:
    """Values of one pod on one GPU: (seconds since the epoch, value), ascending."""

    namespace: str
    pod: str
    uuid: str
    samples: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class History:
    """`alone` says of a GPU and a moment whether at most one tenant had work there."""

    sm: Sequence[PodSeries]
    memory: Sequence[PodSeries]
    contending: Mapping[tuple[str, float], float]
    step_s: float


def owner_of(pod: str) -> str:
    """The name of what made a pod, as far as its own name tells."""
    for pattern in _OWNED:
        if pattern.search(pod):
            return pattern.sub("", pod)
    return pod


def workloads_of(
    history: History, by: By, request_ms: float, source: str
) -> tuple[list[Workload], list[str]]:
    """Workloads by namespace or by owner, and notes for people.

    `request_ms` is how long the GPU works on a request, which no metric shows; `source` is what
    the history was read from.
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
        workload, note = _workload(key, grouped[key], memory[key], history, request_ms, source)
        found.append(workload)
        notes.append(note)
    return found, notes


def _key(one: PodSeries, by: By) -> str:
    return one.namespace if by == "namespace" else f"{one.namespace}/{owner_of(one.pod)}"


def _workload(
    key: str,
    sm: Sequence[PodSeries],
    memory: Sequence[PodSeries],
    history: History,
    request_ms: float,
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
    active = len(busy) / len(values) if values else 0.0
    count = _at_once(sm)
    sizes = _sizes(memory)
    assumed = {"busy_ms", "occupancy", "mps_share", "arrival"}
    if not known:
        assumed.add("share")
    if not sizes:
        assumed.add("memory")
    workload = Workload(
        key,
        request_ms,
        request_ms / share,
        sizes or (0.0,),
        count,
        active=active,
        with_context=True,
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
    return workload, f"{note}."


def _at_once(series: Iterable[PodSeries]) -> int:
    """How many pods there were at once in all but 5 % of the time."""
    pods: dict[float, set[tuple[str, str]]] = defaultdict(set)
    for one in series:
        for at_s, _ in one.samples:
            pods[at_s].add((one.namespace, one.pod))
    counts = sorted(map(len, pods.values()))
    return max(1, counts[min(len(counts) - 1, int(0.95 * len(counts)))]) if counts else 1


def _sizes(series: Iterable[PodSeries]) -> tuple[float, ...]:
    """The most that each pod held in each hour, in GiB; so many quantiles of it at most."""
    hours: dict[tuple[str, str, str, int], float] = {}
    for one in series:
        for at_s, value in one.samples:
            key = (one.namespace, one.pod, one.uuid, int(at_s // HOUR_S))
            hours[key] = max(hours.get(key, 0.0), value / GIB)
    ordered = sorted(hours.values())
    if len(ordered) <= MEMORY_SAMPLES:
        return tuple(ordered)
    last = len(ordered) - 1
    return tuple(ordered[round(i * last / (MEMORY_SAMPLES - 1))] for i in range(MEMORY_SAMPLES))


def _burst_s(series: Iterable[PodSeries], step_s: float) -> float:
    """The mean length of spans in which a pod was active, at the resolution of the samples."""
    lengths = [length for one in series for length in _spans(one.samples)]
    return step_s * sum(lengths) / len(lengths) if lengths else 0.0


def _spans(samples: Iterable[tuple[float, float]]) -> Iterator[int]:
    for is_active, span in groupby(samples, key=lambda one: one[1] >= ACTIVE):
        if is_active:
            yield sum(1 for _ in span)
