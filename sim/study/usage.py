"""Usage of GPUs over time, as a recording keeps it below its scenario: one line for each interval.

The part begins with the line `USAGE_MARK` and is YAML of its own, in which every line is JSON
behind a dash: a head, a line for each process when it is first seen, and for each interval the
processes that were there with their share of the SMs (thousandths, null where the driver does not
sample it) and their memory (MiB).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, TextIO

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from sim.gpu.profiles import MIB
from sim.node.scenario import USAGE_MARK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from gpuplugin.core.usage import PodName
    from hal import ComputeProcess, Telemetry
    from sim.study.observe import Sample

MOST_INTERVALS = 3600
"""A longer recording has longer intervals, so that its size does not grow with its length."""
MOST_PROCESSES = 5000
"""Those that come later are not recorded."""

_OWNED = (
    re.compile(r"-[0-9a-f]{8,10}-[a-z0-9]{5}$"),  # a Deployment's
    re.compile(r"-\d+$"),  # a StatefulSet's, or an indexed Job's
    # A DaemonSet's or a Job's: Kubernetes makes names of these letters and digits alone
    # (k8s.io/apimachinery/pkg/util/rand), so that most words are none.
    re.compile(r"-[bcdfghjklmnpqrstvwxz2456789]{5}$"),
)


def owner_of(pod: str) -> str:
    """The name of what made a pod, as far as its own name tells."""
    for pattern in _OWNED:
        if pattern.search(pod):
            return pattern.sub("", pod)
    return pod


class NoUsage(ValueError):
    """A file has no usage over time that can be read; the text says where and what to do."""


class Labels:
    """Names as they are, or with `scrub` numbers in their place, always the same for the same."""

    def __init__(self, *, scrub: bool) -> None:
        self.scrub = scrub
        self._numbers: dict[tuple[str, str], str] = {}
        self._next: dict[str, int] = {}

    def label(self, kind: str, name: str) -> str:
        if not self.scrub:
            return name
        if (kind, name) not in self._numbers:
            self._next[kind] = self._next.get(kind, 0) + 1
            self._numbers[kind, name] = f"{kind}-{self._next[kind]}"
        return self._numbers[kind, name]


class Head(BaseModel):
    model_config = ConfigDict(frozen=True)

    interval_s: float
    look_s: float
    """Between two looks; an interval may have several."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A process; `namespace` and `pod` are empty where its pod is not known."""

    process: int
    gpu: int
    name: str
    namespace: str = ""
    pod: str = ""
    owner: str = ""


@dataclass(slots=True)
class _Interval:
    looks: int = 0
    shares: list[float] = field(default_factory=list)
    most_bytes: int = 0


class UsageWriter:
    """Writes while it is told of looks; what it holds does not grow with their number."""

    def __init__(
        self,
        stream: TextIO,
        look_s: float,
        for_s: float,
        began_s: float,
        labels: Labels,
        pods: Callable[[frozenset[int]], Mapping[int, PodName | None]],
    ) -> None:
        """`began_s` is in seconds since the epoch; `pods` finds the pods of processes."""
        self._stream, self._began_s, self._labels, self._pods = stream, began_s, labels, pods
        self._interval_s = look_s * max(1, math.ceil(for_s / look_s / MOST_INTERVALS))
        self._tenants: dict[tuple[str, int, str | None, str], int] = {}
        self._positions: dict[str, int] = {}
        self._number = -1
        self._interval: dict[int, _Interval] = {}
        self._write({"interval_s": self._interval_s, "look_s": look_s})

    def looked(self, sample: Sample) -> None:
        number = math.floor((self._began_s + sample.at_s) / self._interval_s)
        if number != self._number:
            self.flush()
            self._number = number
        new = {
            process.pid
            for uuid, found in sample.processes.items()
            for process in found
            if _key(uuid, process) not in self._tenants
        }
        pods = self._pods(frozenset(new)) if new else {}
        for uuid, found in sample.processes.items():
            shares = shares_of(sample.readings.get(uuid), found)
            for process, share in zip(found, shares, strict=True):
                tenant = self._tenant(uuid, process, pods)
                if tenant is None:
                    continue
                now = self._interval.setdefault(tenant, _Interval())
                now.looks += 1
                if share is not None:
                    now.shares.append(share)
                now.most_bytes = max(now.most_bytes, process.memory_bytes or 0)

    def flush(self) -> None:
        """Write what there is of the interval that is not over."""
        if self._interval:
            told = {
                str(tenant): [
                    round(1000 * sum(one.shares) / len(one.shares)) if one.shares else None,
                    round(one.most_bytes / MIB),
                ]
                for tenant, one in self._interval.items()
            }
            self._write([round(self._number * self._interval_s, 3), told])
        self._interval = {}
        self._stream.flush()

    def _tenant(
        self, uuid: str, process: ComputeProcess, pods: Mapping[int, PodName | None]
    ) -> int | None:
        key = _key(uuid, process)
        if key not in self._tenants:
            if len(self._tenants) >= MOST_PROCESSES:
                return None
            number = self._tenants[key] = len(self._tenants)
            gpu = self._positions.setdefault(uuid, len(self._positions))
            label, pod = self._labels.label, pods.get(process.pid)
            name = label("process", process.name)
            if pod is None:
                tenant = Tenant(number, gpu, name, owner=name)
            else:
                tenant = Tenant(
                    number,
                    gpu,
                    name,
                    label("namespace", pod.namespace),
                    label("pod", pod.name),
                    label("workload", owner_of(pod.name)),
                )
            self._write(asdict(tenant))
        return self._tenants[key]

    def _write(self, node: object) -> None:
        print("-", json.dumps(node, separators=(",", ":")), file=self._stream)


def _key(uuid: str, process: ComputeProcess) -> tuple[str, int, str | None, str]:
    return uuid, process.pid, process.mig_uuid, process.name


def shares_of(
    reading: Telemetry | None, processes: Sequence[ComputeProcess]
) -> Sequence[float | None]:
    """The shares of processes at one look; load that is not sampled is divided among the rest."""
    shares = [one.sm_share for one in processes]
    load = None if reading is None else reading.utilization
    unsampled = [one.sm_share is None and one.mig_uuid is None for one in processes]
    if load is None or not any(unsampled):
        return shares
    rest = max(0.0, load - sum(share for share in shares if share is not None)) / sum(unsampled)
    return [rest if one else share for share, one in zip(shares, unsampled, strict=True)]


@dataclass(frozen=True, slots=True)
class Look:
    """An interval that began at `at_s` since the epoch: share of the SMs and bytes by process."""

    at_s: float
    seen: Mapping[int, tuple[float | None, float]]


@dataclass(frozen=True, slots=True)
class Usage:
    head: Head
    tenants: Mapping[int, Tenant]
    looks: Sequence[Look]


_TENANT = TypeAdapter(Tenant)
_LOOK: TypeAdapter[tuple[float, dict[int, tuple[float | None, float]]]] = TypeAdapter(
    tuple[float, dict[int, tuple[float | None, float]]]
)


def read_usage(path: Path) -> Usage:
    """The usage of a recording; raises `NoUsage`, and `OSError` for a file that is none."""
    head: Head | None = None
    tenants: dict[int, Tenant] = {}
    looks: list[Look] = []
    with path.open(encoding="utf-8") as stream:
        for number, line in _lines(stream):
            try:
                if head is None:
                    head = Head.model_validate_json(line)
                elif line.startswith("{"):
                    tenant = _TENANT.validate_json(line)
                    tenants[tenant.process] = tenant
                else:
                    at_s, seen = _LOOK.validate_json(line)
                    looks.append(Look(at_s, {key: _units(value) for key, value in seen.items()}))
            except (ValidationError, ValueError) as error:
                raise NoUsage(f"{path}, line {number}: {error}") from error
    if head is None:
        raise NoUsage(
            f"{path} has no usage over time: record the node with 'gpuplugin record --for 1h'"
        )
    return Usage(head, tenants, looks)


def _lines(stream: TextIO) -> Iterator[tuple[int, str]]:
    """Number and text of each line of the part, without its dash."""
    below = False
    for number, line in enumerate(stream, 1):
        if below and line.strip():
            yield number, line.removeprefix("- ").strip()
        below = below or line.startswith(USAGE_MARK)


def _units(value: tuple[float | None, float]) -> tuple[float | None, float]:
    share, mib = value
    return None if share is None else share / 1000, mib * MIB
