"""The report of a run in virtual time, computed from its outcome."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from operator import sub, truediv
from typing import TYPE_CHECKING, TypeVar

from gpuplugin.core.usage import jain
from sim.gpu.scheduler import NS_PER_MS, NS_PER_S
from sim.study.runreport import (
    Deprived,
    GpuReport,
    KindReport,
    PodsReport,
    RunReport,
    Service,
    Spread,
    TenantReport,
)

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Mapping, Sequence

    from sim.gpu.tenancy import TenantRecord
    from sim.virtual.run import GpuNotes, Outcome


_Value = TypeVar("_Value", int, float)

CURVE = (0.0, *(percent / 100 for percent in range(1, 100)), 0.995, 0.999, 0.9999, 1.0)
"""Shares of requests at which a curve has its points; the tail is what people ask for."""


class Requests:
    """Requests of tenants from `parts`: latencies and works alone, in nanoseconds, sorted once."""

    def __init__(self, parts: Iterable[tuple[array[int], array[int]]]) -> None:
        self._latency_ns: list[int] = []
        self._work_ns: list[int] = []
        for latency_ns, work_ns in parts:
            self._latency_ns.extend(latency_ns)
            self._work_ns.extend(work_ns)
        latency, work = self._latency_ns, self._work_ns
        self.count = len(latency)
        self.latency_sum_ns = sum(latency)
        self.work_sum_ns = sum(work)
        self._ratios = math.fsum(map(truediv, latency, work))
        waits = list(map(sub, latency, work))
        work.sort()
        latency.sort()
        if self.count and work[0] == work[-1]:
            waits = [one - work[0] for one in latency]  # in order already
        else:
            waits.sort()
        self._waits_ns = waits

    @property
    def slowdown(self) -> float | None:
        return self._ratios / self.count if self.count else None

    @property
    def speed(self) -> float | None:
        """All work alone over all latency: throughput of one who waits, against alone."""
        return self.work_sum_ns / self.latency_sum_ns if self.latency_sum_ns else None

    @property
    def alone_ms(self) -> float | None:
        return percentile(self._work_ns, 0.5) / NS_PER_MS if self.count else None

    @property
    def latency_ms(self) -> Spread | None:
        return _spread(self._latency_ns, self.latency_sum_ns)

    @property
    def wait_ms(self) -> Spread | None:
        return _spread(self._waits_ns, self.latency_sum_ns - self.work_sum_ns)

    @property
    def latency_curve(self) -> list[tuple[float, float]]:
        if not self.count:
            return []
        return [(share, percentile(self._latency_ns, share) / NS_PER_MS) for share in CURVE]


def percentile(ordered: Sequence[_Value], share: float) -> _Value:
    """The smallest of sorted values that `share` (0 to 1) of them do not exceed: nearest rank."""
    # Without the small amount, 0.07 * 100 = 7.000000000000001 would be rank 8.
    rank = math.ceil(share * len(ordered) - 1e-9)
    return ordered[max(1, rank) - 1]


def fairness(speeds: Sequence[float]) -> float | None:
    """Jain's index over the speeds of tenants; None without two of them to compare."""
    return jain(speeds) if len(speeds) >= 2 and any(speeds) else None


def mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there else None


def share_of(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _spread(ordered_ns: Sequence[int], sum_ns: int) -> Spread | None:
    if not ordered_ns:
        return None
    p50, p95, p99 = (percentile(ordered_ns, share) / NS_PER_MS for share in (0.5, 0.95, 0.99))
    return Spread(
        mean=sum_ns / len(ordered_ns) / NS_PER_MS,
        p50=p50,
        p95=p95,
        p99=p99,
        max=ordered_ns[-1] / NS_PER_MS,
    )


_NUMBER = re.compile(r"-\d+$")
_NS_PER_HOUR = 3600 * NS_PER_S
_PPM = 1_000_000


def report_of(outcome: Outcome) -> RunReport:
    """What a run showed. Sorts the requests of each tenant and of each kind once."""
    end_ns = round(outcome.until_s * NS_PER_S)
    tenants = _tenants(outcome)
    deprived = _deprived(outcome, tenants, end_ns)
    reports = [one.report(end_ns) for one in tenants]
    by_place = {
        place: notes.uuid for notes in outcome.gpus for place in (*notes.places, notes.uuid)
    }
    gpus = [
        _gpu(outcome, notes, label, [one for one in tenants if by_place.get(one.gpu) == notes.uuid])
        for notes, label in zip(outcome.gpus, labels(outcome.gpus), strict=True)
    ]
    gpus.sort(key=lambda gpu: (gpu.index, gpu.label))
    active_ns = sum(notes.active_ns for notes in outcome.gpus)
    switching_ns = sum(notes.switching_ns for notes in outcome.gpus)
    return RunReport(
        scenario=outcome.scenario,
        seed=outcome.seed,
        until_s=outcome.until_s,
        window_at_s=outcome.window_at_s,
        slices_from=outcome.slices_from,
        gpus=gpus,
        kinds=_kinds(tenants, by_place, deprived, end_ns),
        tenants=reports,
        utilization=mean(gpu.utilization for gpu in gpus),
        switching_share=share_of(switching_ns, active_ns + switching_ns),
        fairness=_fairness(tenants),
        deprived=deprived,
        ooms=sum(record.ooms for record in outcome.tenants),
        xids=dict(sorted(outcome.xids.items())),
        restarts=sum(one.restarts for one in reports),
        unavailable_replica_hours=outcome.unavailable_replica_ns / _NS_PER_HOUR,
        pods=_pods(outcome),
        facts=dict(sorted(outcome.counts.items())),
    )


def kind_of(name: str) -> str:
    """What a tenant is one of: its name without `-N` at the end."""
    return _NUMBER.sub("", name)


def labels(gpus: Sequence[GpuNotes]) -> list[str]:
    """The index of each GPU; those of one index get letters, the first that was there `a`."""
    shared = Counter(notes.index for notes in gpus)
    first = sorted(
        gpus, key=lambda notes: notes.samples[0].at_s if notes.samples else float("-inf")
    )
    given: dict[str, str] = {}
    seen: Counter[int] = Counter()
    for notes in first:
        letter = chr(ord("a") + seen[notes.index]) if shared[notes.index] > 1 else ""
        given[notes.uuid] = f"{notes.index}{letter}"
        seen[notes.index] += 1
    return [given[notes.uuid] for notes in gpus]


@dataclass(slots=True)
class _Tenant:
    """The records of one tenant: one for each time that it was started on a GPU."""

    name: str
    gpu: str
    records: list[TenantRecord] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return kind_of(self.name)

    @property
    def busy_ns(self) -> int:
        return sum(record.busy_ns for record in self.records)

    @property
    def served(self) -> int:
        return sum(len(record.latency_ns) for record in self.records)

    @property
    def wanted_to_work(self) -> bool:
        """Whether it had anything to do, or had no chance to: a pod without devices had not."""
        return not self.records or any(
            one.asked or one.ooms or one.latency_ns for one in self.records
        )

    @property
    def speed(self) -> float:
        """As `Service.speed`, 0 where nothing was done."""
        latency_ns = sum(sum(record.latency_ns) for record in self.records)
        return sum(sum(one.work_ns) for one in self.records) / latency_ns if latency_ns else 0.0

    def report(self, end_ns: int) -> TenantReport:
        service = _service([self], end_ns, _requests([self]))
        return TenantReport(name=self.name, gpu=self.gpu, **dict(service))


def _tenants(outcome: Outcome) -> list[_Tenant]:
    """Those that ran, and pods that never had devices, which have no records and no GPU."""
    found: dict[tuple[str, str], _Tenant] = {}
    for record in outcome.tenants:
        key = (record.name, record.gpu)
        found.setdefault(key, _Tenant(*key)).records.append(record)
    for pod in outcome.pods:
        if pod.placed_ns is None:
            found.setdefault((pod.name, ""), _Tenant(pod.name, ""))
    return sorted(found.values(), key=lambda one: (_natural(one.name), one.gpu))


def _natural(name: str) -> tuple[str, int]:
    """api-2 before api-10."""
    number = _NUMBER.search(name)
    return kind_of(name), int(number[0][1:]) if number else -1


def _deprived(outcome: Outcome, tenants: Sequence[_Tenant], end_ns: int) -> list[Deprived]:
    pods = {pod.name: pod for pod in outcome.pods if pod.placed_ns is None}
    served = {one.name for one in tenants if one.served}
    found = []
    for one in tenants:
        if one.name in served or not one.wanted_to_work:
            continue
        if one.records:
            came_ns = one.records[0].started_ns
            last = one.records[-1]
            until_ns = end_ns if last.ended_ns is None else last.ended_ns
            memory = any(record.ooms for record in one.records)
            why = "memory" if memory else "fault" if last.ended else "starved"
        else:
            came_ns, until_ns = pods[one.name].came_ns, end_ns
            why = "refused" if pods[one.name].refused else "waited"
        for_s = (until_ns - came_ns) / NS_PER_S
        found.append(Deprived(name=one.name, kind=one.kind, why=why, for_s=for_s))
    return found


def _fairness(tenants: Iterable[_Tenant]) -> float | None:
    """Jain's index over the speeds of tenants; None without two of them that had work."""
    return fairness([one.speed for one in tenants if one.wanted_to_work])


def _kinds(
    tenants: Sequence[_Tenant],
    by_place: Mapping[str, str],
    deprived: Sequence[Deprived],
    end_ns: int,
) -> list[KindReport]:
    nothing = Counter(one.kind for one in deprived)
    grouped: dict[str, list[_Tenant]] = {}
    for tenant in tenants:
        grouped.setdefault(tenant.kind, []).append(tenant)
    kinds = sorted(grouped, key=lambda kind: (-sum(one.busy_ns for one in grouped[kind]), kind))
    reports = []
    for kind in kinds:
        members = grouped[kind]
        requests = _requests(members)
        gpus = {by_place.get(one.gpu, one.gpu) for one in members if one.gpu}
        reports.append(
            KindReport(
                tenants=len(members),
                deprived=nothing[kind],
                gpus=len(gpus),
                latency_curve=requests.latency_curve,
                neighbours=_neighbours(
                    kind, tenants, {one.gpu for one in members if one.gpu}, end_ns
                ),
                **dict(_service(members, end_ns, requests)),
            )
        )
    return reports


def _neighbours(
    kind: str, tenants: Sequence[_Tenant], places: set[str], end_ns: int
) -> dict[str, float]:
    """Which kinds took the time of these GPUs or MIG devices; of its own kind all but one."""
    taken: Counter[str] = Counter()
    for place in places:
        here = [one for one in tenants if one.gpu == place]
        own = sum(one.kind == kind for one in here)
        for one in here:
            # Of its own kind a tenant meets all others: on average this part of their time.
            part = (own - 1) / own if one.kind == kind else 1.0
            taken[one.kind] += round(one.busy_ns * part)
    whole_ns = end_ns * len(places)
    order = sorted(taken, key=lambda other: (-taken[other], other))
    return {other: taken[other] / whole_ns for other in order if taken[other]}


def _requests(tenants: Sequence[_Tenant]) -> Requests:
    return Requests(
        (record.latency_ns, record.work_ns) for tenant in tenants for record in tenant.records
    )


def _service(tenants: Sequence[_Tenant], end_ns: int, requests: Requests) -> Service:
    records = [record for tenant in tenants for record in tenant.records]
    running_ns = sum(
        (end_ns if record.ended_ns is None else record.ended_ns) - record.started_ns
        for record in records
    )
    busy_ns = sum(record.busy_ns for record in records)
    return Service(
        kind=tenants[0].kind,
        served=requests.count,
        running_s=running_ns / NS_PER_S,
        throughput_per_s=share_of(requests.count * NS_PER_S, running_ns),
        gpu_share=share_of(busy_ns, running_ns),
        slowdown=requests.slowdown,
        speed=requests.speed,
        alone_ms=requests.alone_ms,
        latency_ms=requests.latency_ms,
        wait_ms=requests.wait_ms,
        ooms=sum(record.ooms for record in records),
        restarts=sum(_restarts(tenant.records) for tenant in tenants),
        ended=dict(sorted(Counter(one.ended for one in records if one.ended).items())),
    )


def _restarts(records: Sequence[TenantRecord]) -> int:
    """Starts after an end. Two tenants of one name that run side by side are no restart."""
    ends = [record.ended_ns for record in records if record.ended_ns is not None]
    return sum(any(end <= record.started_ns for end in ends) for record in records[1:])


def _gpu(outcome: Outcome, notes: GpuNotes, label: str, tenants: Sequence[_Tenant]) -> GpuReport:
    samples = notes.samples
    until_ns = outcome.until_s * NS_PER_S
    whole = notes.places <= {notes.uuid} and notes.active_ns > 0
    return GpuReport(
        label=label,
        index=notes.index,
        uuid=notes.uuid,
        product=notes.product,
        tenants=len(tenants),
        served=sum(one.served for one in tenants),
        utilization=(
            share_of(notes.active_ns, until_ns)
            if whole
            else mean(sample.utilization for sample in samples)
        ),
        switching_share=share_of(notes.switching_ns, notes.active_ns + notes.switching_ns),
        fairness=_fairness(tenants),
        memory_bytes=notes.memory_bytes,
        memory_peak_bytes=max((one.memory_used_bytes for one in samples), default=None),
        temperature_max_c=max((one.temperature_c for one in samples), default=None),
        clock_min_share=min((one.clock_ppm / _PPM for one in samples), default=None),
        ooms=sum(record.ooms for one in tenants for record in one.records),
        unhealthy_s=notes.unhealthy_ns / NS_PER_S,
        faults=sum(
            change.uuid == notes.uuid and change.state == "Unhealthy" for change in outcome.changes
        ),
        thermal_shutdowns=outcome.thermal_shutdowns[notes.uuid],
    )


def _pods(outcome: Outcome) -> PodsReport:
    waits_ns = [pod.placed_ns - pod.came_ns for pod in outcome.pods if pod.placed_ns is not None]
    waits = [wait_ns for wait_ns in waits_ns if wait_ns > NS_PER_S]
    return PodsReport(
        created=len(outcome.pods),
        waited=len(waits),
        wait_max_s=max(waits) / NS_PER_S if waits else None,
        never_started=len(outcome.pods) - len(waits_ns),
        refused=sum(pod.refused for pod in outcome.pods),
    )
