"""What an advice predicted, and what the metrics show since: by how much it was wrong.

The advice is read from the JSON of `gpuplugin advise --json`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from sim.study.sentences import counted, duration, listed, number, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

CLOSE = 0.1
"""A prediction that is off by at most this share of what was seen is called right."""
LEAST = 0.02
"""What is smaller in prediction and sight than this is not compared in percent."""


FEW_EVENTS = 3.0
"""Of so many that were to come, chance leaves none in 5 % of all cases (Poisson)."""
_WEEK_S = 7 * 86400.0


class NoAdvice(ValueError):
    """A file is no advice that can be checked; the text says why."""


class _Read(BaseModel):
    """Of the JSON what is needed here."""

    model_config = ConfigDict(frozen=True)


class AdvisedWorkload(_Read):
    name: str
    count: int


class AdvisedRow(_Read):
    """See `sim.advise.advice.Row`."""

    replicas: int
    sharing: int
    p95: float | None
    ooms_per_week: float
    left_out: int
    utilization: float
    contending: float
    memory_mean_gib: float
    memory_most_gib: float
    sm_shares: dict[str, float]


class Advised(_Read):
    model: str
    replicas: int
    gpus: int
    mechanism: str
    made_at: AwareDatetime
    workloads: list[AdvisedWorkload]
    rows: list[AdvisedRow]

    def row_of(self, replicas: int) -> AdvisedRow | None:
        return next((row for row in self.rows if row.replicas == replicas), None)


def read_advice(path: Path) -> Advised:
    """Raises `NoAdvice`, and `OSError` for a file that cannot be read."""
    try:
        return Advised.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise NoAdvice(
            f"{path} is no output of 'gpuplugin advise --json': {where or 'the file'}: "
            f"{first['msg']}"
        ) from error


@dataclass(frozen=True, slots=True)
class PodSeen:
    """A pod on a GPU: its mean share of the SMs over so many samples."""

    namespace: str
    owner: str
    uuid: str
    samples: float
    sm_share: float


@dataclass(frozen=True, slots=True)
class GpuSeen:
    """A GPU over the time that is checked, as `gpuplugin_gpu_...` say; None for what is not there.

    `replicas` are values that it had, the newest last. `full_share` is the share of the time in
    which all replicas were allocated, `short_per_week` in how many hours a week memory was nearly
    full.
    """

    replicas: tuple[int, ...]
    utilization: float | None = None
    tenants: float | None = None
    contending: float | None = None
    memory_mean_gib: float | None = None
    memory_most_gib: float | None = None
    short_per_week: float | None = None
    full_share: float | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """`waiting` is the mean number of pods that waited for a GPU, None without such a metric."""

    length_s: float
    gpus: Mapping[str, GpuSeen]
    pods: Sequence[PodSeen]
    waiting: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """`off` is the prediction over what was seen, less 1; None where that says nothing.

    It is infinite where nothing was seen of what was predicted, unless less than `never_below` was:
    of so little nothing may be seen by chance.
    """

    what: str
    predicted: float
    seen: float | None
    unit: str = ""
    never_below: float = LEAST

    @property
    def off(self) -> float | None:
        if self.seen is None or max(self.seen, self.predicted) < LEAST:
            return None
        if not self.seen:
            return math.inf if self.predicted >= self.never_below else None
        return self.predicted / self.seen - 1

    @property
    def told_off(self) -> str:
        if self.off is None:
            return "-"
        return f"{self.off:+.0%}".replace("%", " %") if math.isfinite(self.off) else "none seen"

    def told(self, value: float | None) -> str:
        if value is None:
            return "not seen"
        return percent(value) if self.unit == "%" else f"{number(value)}{self.unit}"


@dataclass(frozen=True, slots=True)
class Check:
    """`row` is that of the replicas that there were; None if the advice has none."""

    advised: Advised
    length_s: float
    gpus: int
    replicas: int
    row: AdvisedRow | None
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]


class NothingSeen(Exception):
    """The metrics show nothing of what was advised; the text says what was looked for."""


def check(advised: Advised, seen: Seen) -> Check:
    """Raises `NothingSeen`."""
    pods = {one.name: [pod for pod in seen.pods if _is(pod, one)] for one in advised.workloads}
    uuids = {pod.uuid for found in pods.values() for pod in found} & seen.gpus.keys()
    if not uuids:
        names = listed([one.name for one in advised.workloads])
        raise NothingSeen(
            f"no pod of {names} was seen on a GPU in {duration(seen.length_s)}: a workload is "
            "found by its name, NAMESPACE/OWNER, OWNER or NAMESPACE of its pods"
        )
    gpus = [gpu for uuid, gpu in sorted(seen.gpus.items()) if uuid in uuids]
    now = Counter(gpu.replicas[-1] for gpu in gpus if gpu.replicas)
    replicas = now.most_common(1)[0][0] if now else 0
    row = advised.row_of(replicas)
    compared = () if row is None else tuple(_comparisons(advised, row, gpus, pods, seen))
    notes = tuple(_notes(advised, row, gpus, pods, seen))
    return Check(advised, seen.length_s, len(gpus), replicas, row, compared, notes)


def _is(pod: PodSeen, workload: AdvisedWorkload) -> bool:
    return workload.name in (f"{pod.namespace}/{pod.owner}", pod.owner, pod.namespace)


def _comparisons(
    advised: Advised,
    row: AdvisedRow,
    gpus: Sequence[GpuSeen],
    pods: Mapping[str, Sequence[PodSeen]],
    seen: Seen,
) -> Iterator[Comparison]:
    def mean(what: Callable[[GpuSeen], float | None]) -> float | None:
        there = [value for gpu in gpus if (value := what(gpu)) is not None]
        return sum(there) / len(there) if there else None

    yield Comparison("pods on a GPU", row.sharing, mean(lambda gpu: gpu.tenants))
    yield Comparison("utilisation", row.utilization, mean(lambda gpu: gpu.utilization), "%")
    for name, found in pods.items():
        share = _share(found)
        if name in row.sm_shares:
            yield Comparison(
                f"share of the SMs of a pod of {name}", row.sm_shares[name], share, "%"
            )
    yield Comparison("pods with work at once", row.contending, mean(lambda gpu: gpu.contending))
    yield Comparison(
        "memory, mean", row.memory_mean_gib, mean(lambda gpu: gpu.memory_mean_gib), " GiB"
    )
    most = [gpu.memory_most_gib for gpu in gpus if gpu.memory_most_gib is not None]
    yield Comparison("memory, most", row.memory_most_gib, max(most, default=None), " GiB")
    yield Comparison(
        "memory full, times a week",
        row.ooms_per_week,
        mean(lambda gpu: gpu.short_per_week),
        never_below=FEW_EVENTS * _WEEK_S / (seen.length_s * len(gpus)),
    )
    yield Comparison("pods that wait", row.left_out, seen.waiting)
    full = float(advised_pods(advised) >= row.replicas * advised.gpus)
    yield Comparison("all replicas taken", full, mean(lambda gpu: gpu.full_share), "%")


def advised_pods(advised: Advised) -> int:
    return sum(one.count for one in advised.workloads)


def _share(pods: Sequence[PodSeen]) -> float | None:
    samples = sum(pod.samples for pod in pods)
    return sum(pod.sm_share * pod.samples for pod in pods) / samples if samples else None


def _notes(
    advised: Advised,
    row: AdvisedRow | None,
    gpus: Sequence[GpuSeen],
    pods: Mapping[str, Sequence[PodSeen]],
    seen: Seen,
) -> Iterator[str]:
    values = sorted({value for gpu in gpus for value in gpu.replicas})
    if len(values) > 1:
        yield (
            f"There were {listed([str(value) for value in values])} replicas of a GPU in this "
            "time: take the time since the last change with --since."
        )
    if row is None:
        known = listed([str(one.replicas) for one in advised.rows])
        yield f"The advice has no such row: it has those of {known} replicas."
    missing = [name for name, found in pods.items() if not found]
    if missing:
        yield f"No pod of {listed(missing)} was seen."
    if row is not None:
        yield from _fewer(advised, row, gpus)
    p95 = "" if row is None or row.p95 is None else f" ({row.p95:.2f} at p95 was predicted)"
    yield (
        f"Not in the metrics: how long requests took, so that the slowdown is not compared{p95}; "
        "and allocations that failed: memory counts as full where less than 0.5 GiB was free."
    )
    if seen.waiting is None:
        yield "Pods that wait are in kube-state-metrics, which this Prometheus does not have."


def _fewer(advised: Advised, row: AdvisedRow, gpus: Sequence[GpuSeen]) -> Iterator[str]:
    """What was predicted for as many pods as there were, where that is another number."""
    there = [gpu.tenants for gpu in gpus if gpu.tenants is not None]
    if not there:
        return
    tenants = round(sum(there) / len(there))
    other = next((one for one in advised.rows if one.sharing == tenants), None)
    if other is not None and tenants != row.sharing:
        yield (
            f"There were {counted(tenants, 'pod')} on a GPU, not {row.sharing}: for so many "
            f"{percent(other.utilization)} utilisation was predicted."
        )


def verdict(found: Check) -> str:
    """One sentence: how right the prediction was, and where it was furthest off."""
    on = f"on {counted(found.gpus, 'GPU')} with {counted(found.replicas, 'replica')} each"
    begin = f"In {duration(found.length_s)} {on}"
    compared = [one for one in found.comparisons if one.off is not None]
    if not compared:
        return f"{begin} nothing can be compared."
    right = sum(abs(one.off or 0.0) <= CLOSE for one in compared)
    worst = max(compared, key=lambda one: abs(one.off or 0.0))
    text = f"{begin} {right} of {len(compared)} predictions were within {percent(CLOSE)}"
    if right == len(compared):
        return f"{text}."
    return (
        f"{text}; furthest off is '{worst.what}': {worst.told(worst.predicted)} predicted, "
        f"{worst.told(worst.seen)} seen."
    )


def as_rows(found: Check) -> list[tuple[str, ...]]:
    return [
        (
            one.what,
            one.told(one.predicted),
            one.told(one.seen),
            one.told_off,
        )
        for one in found.comparisons
    ]


def as_json(found: Check, now: datetime) -> dict[str, object]:
    return {
        "verdict": verdict(found),
        "advised_at": found.advised.made_at.isoformat(timespec="seconds"),
        "checked_at": now.isoformat(timespec="seconds"),
        "length_s": found.length_s,
        "gpus": found.gpus,
        "replicas": found.replicas,
        "comparisons": [
            {
                "what": one.what,
                "predicted": one.predicted,
                "seen": one.seen,
                "off": None if one.off is None or math.isinf(one.off) else one.off,
            }
            for one in found.comparisons
        ],
        "notes": list(found.notes),
    }
