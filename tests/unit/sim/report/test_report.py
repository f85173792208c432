from __future__ import annotations

import json

import pytest

from hal import GIB
from sim.study.report import kind_of, report_of
from sim.study.runreport import RunReport
from sim.virtual.kubelet import PodNotes
from tests.unit.sim.outcomes import change, gpu, outcome, record, sample
from tools.simdocs import key_table


def test_a_tenant_with_known_numbers() -> None:
    latencies = [float(one) for one in range(1, 101)]
    done = outcome(record("api-0", latency_ms=latencies, work_ms=1.0, started_s=50, busy_s=5))
    (kind,) = report_of(done).kinds
    assert (kind.kind, kind.tenants, kind.served) == ("api", 1, 100)
    assert kind.latency_ms is not None
    assert kind.wait_ms is not None
    assert kind.latency_ms.model_dump() == {
        "mean": 50.5, "p50": 50.0, "p95": 95.0, "p99": 99.0, "max": 100.0,
    }  # fmt: skip
    assert (kind.wait_ms.mean, kind.wait_ms.p99) == (49.5, 98.0)
    assert kind.slowdown == pytest.approx(50.5)
    assert kind.speed == pytest.approx(100 / 5050)
    assert (kind.running_s, kind.throughput_per_s, kind.gpu_share) == (50.0, 2.0, 0.1)
    assert kind.alone_ms == 1.0


def test_kinds_are_names_without_their_number_and_tenants_stay_apart() -> None:
    done = outcome(
        record("web-10", latency_ms=[2]),
        record("web-2", latency_ms=[4]),
        record("web", latency_ms=[6]),
        record("gpt-4-0", latency_ms=[1]),
    )
    report = report_of(done)
    assert {kind.kind: kind.tenants for kind in report.kinds} == {"web": 3, "gpt-4": 1}
    assert [one.name for one in report.tenants] == ["gpt-4-0", "web", "web-2", "web-10"]
    assert kind_of("trainer") == "trainer"


def test_fairness_is_that_of_the_tenants_of_a_gpu() -> None:
    done = outcome(
        record("a-0", latency_ms=[1]),  # as fast as alone
        record("b-0", latency_ms=[2]),  # half as fast
        record("idle-0"),  # never asked: not counted
        record("c-0", "GPU-1", latency_ms=[9]),  # alone on its GPU
        gpus=[gpu(0), gpu(1)],
    )
    report = report_of(done)
    assert [one.fairness for one in report.gpus] == [pytest.approx(0.9), None]
    # (1 + 1/2 + 1/9)^2 of all tenants, over 3 times the sum of the squares.
    assert report.fairness == pytest.approx(0.6854, abs=1e-4)


def test_who_got_nothing_is_named_and_counts_as_nothing() -> None:
    done = outcome(
        record("a-0", latency_ms=[1], asked=1),
        record("full-0", ended_s=40, ended="oom", ooms=2, started_s=30),
        record("starved-0", asked=1, started_s=90),
        record("hit-0", asked=1, ended_s=7, ended="xid 31"),
        record("quiet-0"),  # nobody asked anything of it
        record("later-0", ended="oom", ended_s=1, ooms=1),
        record("later-0", started_s=11, latency_ms=[2], asked=1),
    )
    done.pods = [
        PodNotes("waits-0", 60 * 10**9),
        PodNotes("no-0", 0, refused=3),
        PodNotes("a-0", 0, placed_ns=10**9),
    ]
    report = report_of(done)
    assert [(one.name, one.why, one.for_s) for one in report.deprived] == [
        ("full-0", "memory", 10.0),
        ("hit-0", "fault", 7.0),
        ("no-0", "refused", 100.0),
        ("starved-0", "starved", 10.0),
        ("waits-0", "waited", 40.0),
    ]
    kinds = {kind.kind: (kind.tenants, kind.deprived, kind.gpus) for kind in report.kinds}
    assert kinds["waits"] == (1, 1, 0)
    assert kinds["later"] == (1, 0, 1)
    assert next(one for one in report.tenants if one.name == "no-0").gpu == ""
    # Speeds of 1 and 1/2, and five who got nothing; the GPU knows three of these.
    assert report.fairness == pytest.approx(1.5**2 / (7 * 1.25))
    assert report.gpus[0].fairness == pytest.approx(1.5**2 / (5 * 1.25))


def test_restarts_are_starts_after_an_end_and_belong_to_one_tenant() -> None:
    done = outcome(
        record("a-0", ended_s=10, ended="oom", ooms=1, latency_ms=[1]),
        record("a-0", started_s=20, ended_s=30, ended="xid 31", latency_ms=[3]),
        record("a-0", started_s=50),
        record("b-0"),
        record("b-0"),  # another one of the same name at the same time
    )
    report = report_of(done)
    assert report.restarts == 2
    assert report.ooms == 1
    (a, b) = report.tenants
    assert (a.restarts, a.served, a.running_s) == (2, 2, 70.0)
    assert a.ended == {"oom": 1, "xid 31": 1}
    assert b.restarts == 0


def test_a_run_in_which_nothing_was_served_has_nulls_and_no_nan() -> None:
    done = outcome(
        record("died-0", ended_s=0, ended="oom", ooms=1), gpus=[gpu(samples=[])], until_s=10
    )
    report = report_of(done)
    text = report.model_dump_json()
    assert "NaN" not in text
    assert RunReport.model_validate_json(text) == report
    (kind,) = json.loads(text)["kinds"]
    names = ("throughput_per_s", "gpu_share", "slowdown", "speed", "latency_ms", "wait_ms")
    assert {kind[name] for name in names} == {None}
    (only,) = report.gpus
    assert (only.utilization, only.switching_share, only.temperature_max_c) == (None, None, None)


def test_switching_is_a_share_of_the_time_with_work() -> None:
    done = outcome(
        gpus=[
            gpu(0, active_ns=60 * 10**9, switching_ns=20 * 10**9, places={"GPU-0"}),
            gpu(1, active_ns=20 * 10**9, places={"GPU-1"}),
        ]
    )
    report = report_of(done)
    assert [one.switching_share for one in report.gpus] == [0.25, 0.0]
    assert [one.utilization for one in report.gpus] == [0.6, 0.2]
    assert (report.switching_share, report.utilization) == (0.2, 0.4)


def test_a_gpu_with_mig_devices_counts_their_tenants_and_its_readings() -> None:
    mig = gpu(active_ns=150 * 10**9, places={"MIG-a", "MIG-b"}, samples=[sample(1, x_0=2)])
    report = report_of(outcome(record("x-0", "MIG-a", latency_ms=[1]), gpus=[mig]))
    (only,) = report.gpus
    assert (only.tenants, only.served, only.utilization) == (1, 1, 0.5)
    assert only.memory_peak_bytes == 2 * GIB


def test_neighbours_are_those_of_the_same_gpu_less_the_tenant_itself() -> None:
    done = outcome(
        record("api-0", latency_ms=[2], busy_s=10),
        record("api-1", latency_ms=[2], busy_s=10),
        record("train-0", busy_s=60),
        record("far-0", "GPU-1", busy_s=90),
        gpus=[gpu(0), gpu(1)],
    )
    kinds = {kind.kind: kind for kind in report_of(done).kinds}
    assert kinds["api"].neighbours == {"train": 0.6, "api": 0.1}
    assert list(kinds["api"].neighbours) == ["train", "api"]
    assert kinds["far"].neighbours == {}


def test_faults_pods_and_what_could_not_be_used() -> None:
    done = outcome(gpus=[gpu(unhealthy_ns=5 * 10**9), gpu(1)])
    done.changes = [
        change(1, "Unhealthy"), change(2, "Recovering"), change(3, "Unhealthy"),
        change(4, "Unhealthy", "GPU-1"),
    ]  # fmt: skip
    done.xids = {79: 1, 31: 2}
    done.unavailable_replica_ns = 2 * 3600 * 10**9
    done.pods = [
        PodNotes("a-0", 0, 0),
        PodNotes("a-1", 10**9, 10**9 + 20_000_000, refused=1),
        PodNotes("a-2", 0, 4 * 10**9),
        PodNotes("a-3", 0, refused=2),
        PodNotes("a-4", 0),
    ]
    report = report_of(done)
    assert [one.faults for one in report.gpus] == [2, 1]
    assert report.gpus[0].unhealthy_s == 5.0
    assert list(report.xids.items()) == [(31, 2), (79, 1)]
    assert report.unavailable_replica_hours == 2.0
    assert report.pods.model_dump() == {
        "created": 5, "waited": 1, "wait_max_s": 4.0, "never_started": 2, "refused": 3,
    }  # fmt: skip


def test_a_gpu_and_its_successor_have_one_index_and_two_labels() -> None:
    old, new = gpu(3, samples=[sample(1)]), gpu(3, samples=[sample(50)])
    old.uuid, new.uuid = "GPU-z", "GPU-a"
    report = report_of(outcome(gpus=[gpu(0), new, old]))
    assert [(one.label, one.uuid) for one in report.gpus] == [
        ("0", "GPU-0"), ("3a", "GPU-z"), ("3b", "GPU-a"),
    ]  # fmt: skip


def test_every_key_is_explained() -> None:
    table = key_table()
    assert "None" not in table
    for key in ("kinds[].latency_ms.p99", "gpus[].fairness", "pods.refused", "tenants[].gpu"):
        assert f"| `{key}` |" in table
