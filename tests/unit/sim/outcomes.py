"""Outcomes of runs, made by hand, with numbers that can be checked by head."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from hal import GIB
from sim.gpu.scheduler import NS_PER_MS, NS_PER_S, ContextId
from sim.gpu.tenancy import TenantRecord
from sim.gpu.timeslicing import Segment
from sim.virtual.run import GpuNotes, HealthChange, Outcome, Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

UNTIL_S = 100.0


def record(
    name: str,
    gpu: str = "GPU-0",
    latency_ms: Sequence[float] = (),
    work_ms: float = 1.0,
    *,
    started_s: float = 0.0,
    ended_s: float | None = None,
    ended: str = "",
    busy_s: float = 0.0,
    ooms: int = 0,
    asked: int = 0,
) -> TenantRecord:
    return TenantRecord(
        name=name,
        gpu=gpu,
        started_ns=round(started_s * NS_PER_S),
        ended_ns=None if ended_s is None else round(ended_s * NS_PER_S),
        ended=ended,
        asked=asked,
        latency_ns=array("q", (round(one * NS_PER_MS) for one in latency_ms)),
        work_ns=array("q", [round(work_ms * NS_PER_MS)] * len(latency_ms)),
        ooms=ooms,
        busy_ns=round(busy_s * NS_PER_S),
    )


def sample(at_s: float, **memory_gib: float) -> Sample:
    return Sample(
        at_s=at_s,
        utilization=0.5,
        memory_used_bytes=round(sum(memory_gib.values()) * GIB),
        temperature_c=50.0,
        power_w=200.0,
        clock_ppm=1_000_000,
        tenants=len(memory_gib),
        memory_by_tenant={
            name.replace("_", "-"): round(size * GIB) for name, size in memory_gib.items()
        },
    )


def gpu(index: int = 0, **notes: object) -> GpuNotes:
    made = GpuNotes(f"GPU-{index}", index, "NVIDIA Test", 80 * GIB)
    for key, value in notes.items():
        setattr(made, key, value)
    return made


def outcome(
    *tenants: TenantRecord, gpus: Sequence[GpuNotes] | None = None, until_s: float = UNTIL_S
) -> Outcome:
    made = Outcome("by-hand", 1, until_s, 1.0)
    made.tenants = list(tenants)
    made.gpus = list(gpus) if gpus is not None else [gpu()]
    return made


def segment(start_ms: float, end_ms: float, *, switching: bool = False) -> Segment:
    return Segment(round(start_ms * NS_PER_MS), round(end_ms * NS_PER_MS), ContextId(1), switching)


def change(at_s: float, state: str, uuid: str = "GPU-0", reason: str = "") -> HealthChange:
    return HealthChange(at_s, uuid, state, reason)
