"""Workloads alone on a GPU: what they ask for, how often, and how long it takes."""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING

import pytest
import simpy
from pydantic import TypeAdapter, ValidationError

from sim.gpu.scheduler import NS_PER_MS, NS_PER_S, to_ns
from sim.gpu.tenancy import Memory, Tenancy, TenantSpec
from sim.gpu.timeslicing import TimeSlicing
from sim.gpu.workloads import MemoryUse, TraceError, Workload, read_kernels

if TYPE_CHECKING:
    from pathlib import Path

    from sim.gpu.tenancy import TenantRecord

WORKLOAD: TypeAdapter[Workload] = TypeAdapter(Workload)
SWITCH_NS = 145_000
"""The first context comes onto an empty GPU by a switch, too."""


def run_alone(workload: dict[str, object], for_s: float, seed: int = 1) -> TenantRecord:
    env = simpy.Environment()
    tenancy = Tenancy(env, TimeSlicing(), Memory(80 * 1024**3), "GPU-a")
    spec = TenantSpec("one", WORKLOAD.validate_python(workload), MemoryUse(), 1.0)
    tenant = tenancy.start(1, spec, Random(seed))
    env.run(until=to_ns(for_s))
    tenant.record.busy_ns = tenancy.compute.scheduler.usage.busy_ns.get(tenant.context, 0)
    return tenant.record


def latencies_ms(record: TenantRecord) -> list[float]:
    return [round(latency / NS_PER_MS, 3) for latency in record.latency_ns]


def test_a_closed_loop_waits_for_its_answer() -> None:
    record = run_alone({"kind": "closed-loop", "busy_ms": 10, "idle_ms": 30}, 4)
    assert len(record.latency_ns) == 100
    assert set(latencies_ms(record)[1:]) == {10.0}
    assert record.latency_ns[0] == 10 * NS_PER_MS + SWITCH_NS


def test_without_a_pause_it_saturates() -> None:
    record = run_alone({"kind": "closed-loop", "busy_ms": 10}, 4)
    assert record.busy_ns >= 4 * NS_PER_S - 10 * NS_PER_MS - SWITCH_NS


def test_training_pauses_and_writes_checkpoints() -> None:
    workload = {
        "kind": "training", "step_ms": 100, "pause_ms": 100, "checkpoint_every": 5,
        "checkpoint_s": 9,
    }  # fmt: skip
    record = run_alone(workload, 30)
    assert len(record.latency_ns) == 15, "five steps in a second, then nine seconds without"


def test_a_duty_cycle_keeps_its_period() -> None:
    record = run_alone({"kind": "duty-cycle", "period_ms": 100, "share": 0.3}, 10)
    assert len(record.latency_ns) == 100
    assert record.busy_ns == 100 * 30 * NS_PER_MS


def test_regular_requests_come_when_they_are_due() -> None:
    record = run_alone(
        {"kind": "open-loop", "busy_ms": 10, "per_s": 4, "arrivals": "regular", "burst": 3}, 10.1
    )
    assert len(record.latency_ns) == 40 * 3
    assert latencies_ms(record)[3:6] == [10.0, 20.0, 30.0], "a burst is served one by one"


def test_requests_come_whatever_becomes_of_those_before() -> None:
    """Twice as many as can be served: half is served, and waits longer and longer."""
    record = run_alone({"kind": "open-loop", "busy_ms": 100, "per_s": 20}, 60)
    assert len(record.latency_ns) == pytest.approx(600, abs=2)
    assert record.latency_ns[-1] > 20 * NS_PER_S


@pytest.mark.parametrize("seed", range(5))
def test_poisson_requests_have_the_rate_that_was_asked_for(seed: int) -> None:
    record = run_alone({"kind": "open-loop", "busy_ms": 1, "per_s": 10}, 1000, seed)
    assert len(record.latency_ns) == pytest.approx(10_000, abs=4 * math.sqrt(10_000))


def test_a_day_has_a_peak_and_a_low() -> None:
    env = simpy.Environment()
    tenancy = Tenancy(env, TimeSlicing(), Memory(80 * 1024**3), "GPU-a")
    workload = {
        "kind": "open-loop", "busy_ms": 1, "per_s": 1, "diurnal": {"peak_hour": 15, "low": 0.2},
    }  # fmt: skip
    spec = TenantSpec("one", WORKLOAD.validate_python(workload), MemoryUse(), 1.0)
    record = tenancy.start(1, spec, Random(3)).record
    served: list[int] = []
    for hour in range(1, 25):
        env.run(until=to_ns(hour * 3600))
        served.append(len(record.latency_ns) - sum(served))
    assert served[14] == pytest.approx(3600, rel=0.1), "around 15 h the full rate"
    assert served[2] == pytest.approx(720, rel=0.2), "around 3 h a fifth of it"
    assert sum(served) == pytest.approx(24 * 3600 * 0.6, rel=0.03)


def test_a_language_model_makes_tokens_for_all_requests_at_once() -> None:
    alone = {"kind": "llm-decode", "per_s": 0.001, "prompt_tokens": 1000, "output_tokens": 100}
    quiet = run_alone(alone, 40_000)
    assert len(quiet.latency_ns) > 20
    assert all(
        latency - work <= SWITCH_NS + 1
        for latency, work in zip(quiet.latency_ns, quiet.work_ns, strict=True)
    ), "nobody else is there"
    busy = run_alone({**alone, "per_s": 5}, 300)
    assert len(busy.latency_ns) == pytest.approx(1500, rel=0.1), "batching keeps up with the rate"
    mean = sum(busy.latency_ns) / sum(busy.work_ns)
    assert mean > 1.2, "prefills of others hold up the batch"


def test_a_batch_has_a_limit() -> None:
    workload = {"kind": "llm-decode", "per_s": 50, "output_tokens": 50, "max_batch": 4}
    record = run_alone(workload, 60)
    assert len(record.latency_ns) < 60 * 4 / (50 * 0.015), "no more than four at a time"


def test_a_kernel_trace_is_replayed(tmp_path: Path) -> None:
    file = tmp_path / "kernels.csv"
    file.write_text("stream,start_ms,duration_ms\n0,130,5\n0,100,10\n1,101,2\n")
    assert read_kernels(str(file)) == [
        (0, 10 * NS_PER_MS), (1 * NS_PER_MS, 2 * NS_PER_MS), (30 * NS_PER_MS, 5 * NS_PER_MS)
    ]  # fmt: skip
    record = run_alone({"kind": "kernel-trace", "file": str(file)}, 1)
    assert latencies_ms(record) == [10.145, 11.145, 5.0], "the second waits for the first"
    assert record.ended == "done"
    again = run_alone({"kind": "kernel-trace", "file": str(file), "repeat": True}, 1)
    assert len(again.latency_ns) > 80


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("start_ms,duration_ms\n", "at least one kernel"),
        ("start_ms,length\n1,2\n", "no column 'duration_ms'"),
        ("start_ms,duration_ms\n1,two\n", "two"),
        ("start_ms,duration_ms\n1\n", "kernels.csv"),
        ("start_ms,duration_ms\n1,nan\n", "finite"),
    ],
)
def test_a_trace_that_is_none_is_refused_by_name(tmp_path: Path, text: str, wrong: str) -> None:
    file = tmp_path / "kernels.csv"
    file.write_text(text)
    with pytest.raises(TraceError, match=wrong):
        read_kernels(str(file))
    with pytest.raises(TraceError, match="nowhere"):
        read_kernels("/nowhere.csv")


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "closed-loop"},
        {"kind": "closed-loop", "busy_ms": 0},
        {"kind": "closed-loop", "busy_ms": "many"},
        {"kind": "open-loop", "busy_ms": 1, "per_s": 0},
        {"kind": "duty-cycle", "period_ms": 1, "share": 2},
        {"kind": "sleep"},
        {"kind": "training", "step_ms": 1, "speed": 3},
    ],
)
def test_workloads_that_are_none_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        WORKLOAD.validate_python(wrong)


def test_the_same_seed_is_the_same_run() -> None:
    workload = {"kind": "llm-decode", "per_s": 2}
    one, same, other = (run_alone(workload, 60, seed).latency_ns for seed in (1, 1, 2))
    assert one == same != other
