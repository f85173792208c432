"""Advice: what a workload is, what keeps a goal, and that more of something good never hurts."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuplugin.config.load import load_settings
from hal import GIB
from sim.advise.advice import (
    HOURS_A_WEEK,
    Advice,
    Goals,
    Plan,
    Row,
    WrongPlan,
    advise,
    best,
    memory_of,
    table_of,
    trials,
)
from sim.advise.trial import Trial, try_out
from sim.advise.words import configuration, remarks, sentence
from sim.advise.workload import PRESETS, Workload, WrongWorkload, parsed_workload
from sim.gpu.tenancy import DEFAULT_CONTEXT_BYTES
from sim.study.share import Mechanism, SharePlan, share
from tests.unit.sim.inprocess import InProcess

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

L4 = "l4"


API = Workload("api", 15.0, 100.0, (2.0,), count=8)


def test_a_workload_is_written_in_one_line() -> None:
    assert parsed_workload("api:15/100/2:8") == API
    assert parsed_workload("api:15/100/2") == replace(API, count=1)
    assert parsed_workload("notebook:3") == replace(PRESETS["notebook"], count=3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("api", "write NAME:BUSY-MS/PERIOD-MS/GIB"),
        ("api:15/100", "write NAME"),
        ("api:x/100/2", "'x' is no number"),
        ("api:15/nan/2", "'nan' is no number"),
        ("api:150/100/2", "cannot be"),
        ("api:0/100/2", "cannot be"),
        ("api:15/100/-2", "-2 GiB"),
        ("api:15/100/2:0", "'0' pods"),
        ("api:15/100/2:many", "'many' pods"),
        ("notebook:0", "'0' pods"),
    ],
)
def test_what_is_no_workload(text: str, said: str) -> None:
    with pytest.raises(WrongWorkload, match=said):
        parsed_workload(text)


@given(st.text(max_size=30))
def test_any_text_is_a_workload_or_refused(text: str) -> None:
    try:
        one = parsed_workload(text)
    except WrongWorkload:
        return
    assert 0 < one.busy_ms <= one.period_ms
    assert one.count >= 1


def row(
    replicas: int,
    *,
    keeps: bool = True,
    p95: float = 1.5,
    ooms_per_week: float = 0.0,
    refused: float = 0.0,
    left_out: int = 0,
) -> Row:
    return Row(
        replicas, replicas, 1.0, p95, 2.0, ooms_per_week, refused, left_out, 0.5, 0.01, "api", keeps
    )


def test_the_best_is_the_largest_below_which_all_keep_the_goals() -> None:
    assert best([row(1), row(2), row(3, keeps=False), row(4)]) == 2
    assert best([row(1, keeps=False), row(2)]) == 0
    assert best([row(1), row(2)]) == 2


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (lambda: Plan(L4, ()), "no workload"),
        (lambda: Plan(L4, (API,), gpus=0), "--gpus is 0"),
        (lambda: Plan(L4, (API,), Goals(slowdown_p95=0.5)), "--slowdown-p95"),
        (lambda: Plan(L4, (API,), Goals(min_utilization=2)), "--min-utilization"),
        (lambda: Plan(L4, (replace(API, count=1001),)), "more than 1000"),
    ],
)
def test_what_is_no_plan(plan: Callable[[], Plan], said: str) -> None:
    with pytest.raises(WrongPlan, match=said):
        plan()


def test_equal_pods_are_slowed_down_as_the_other_model_of_sharing_says() -> None:
    """`sim share` and a trial are two programs for one mechanism."""
    pods = (replace(API, count=1),) * 4
    ours = try_out(Trial(L4, pods))
    theirs = share(SharePlan(L4, 4, 15.0, 85.0, memory_gib=2))
    assert theirs.latency_ms.p95 is not None
    p95 = [pod.p95 for pod in ours.pods if pod.p95 is not None]
    assert sum(p95) / 4 == pytest.approx(theirs.latency_ms.p95 / 15, rel=0.1)
    assert ours.utilization == pytest.approx(theirs.gpu_utilization, rel=0.05)


def test_a_pod_alone_is_as_fast_as_alone() -> None:
    (only,) = try_out(Trial(L4, (replace(API, count=1),))).pods
    assert only.p95 == pytest.approx(1.0)
    waiting = table_of(Plan(L4, (replace(API, count=1, arrival="open"),)), InProcess())[0]
    assert (waiting.p50, waiting.p95, waiting.p99) == pytest.approx((1.0, 1.0, 1.0))


@pytest.mark.slow
def test_a_pod_with_seldom_work_is_seen_beside_quick_ones() -> None:
    quick = replace(API, name="quick", count=1, busy_ms=1.0, period_ms=2.0)
    seldom = replace(API, name="seldom", count=1, busy_ms=5_000.0, period_ms=25_000.0)
    *_, last = try_out(Trial(L4, (quick, quick, seldom))).pods
    assert last.requests >= 5
    assert last.busy == pytest.approx(0.2, abs=0.06)


def test_a_pod_whose_memory_does_not_fit_does_nothing() -> None:
    heavy = replace(API, count=1, memory_gib=(20.0,))
    first, second = try_out(Trial(L4, (heavy, heavy))).pods
    assert first.fits
    assert first.p95 == pytest.approx(1.0)
    assert (second.fits, second.p95) == (False, None)


def test_trials_put_more_pods_beside_the_same_ones() -> None:
    plan = Plan(L4, (API, Workload("train", 200.0, 210.0, (4.0,), count=3)))
    few, many = trials(plan, 3, 4), trials(plan, 6, 4)
    assert len(few) == len(many) == 4
    for one, other in zip(few, many, strict=True):
        assert not Counter(one.pods) - Counter(other.pods)
    assert len(trials(Plan(L4, (API,)), 3, 4)) == 1, "all are alike"


def oracle_share_short(plan: Plan, sharing: int) -> float:
    """The share of all draws of pods and of their samples in which memory does not suffice."""
    shares = []
    for pods in itertools.combinations(plan.pods, sharing):
        draws = list(itertools.product(*(pod.memory_gib for pod in pods)))
        needed = [
            sum(round(size * GIB) + DEFAULT_CONTEXT_BYTES for size in sizes) for sizes in draws
        ]
        shares.append(sum(one > plan.memory_bytes for one in needed) / len(draws))
    return sum(shares) / len(shares)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([1.0, 4.0, 8.0, 12.0]), min_size=2, max_size=3),
            st.integers(1, 2),
        ),
        min_size=2,
        max_size=3,
    ),
    st.integers(1, 3),
)
def test_the_chance_that_memory_runs_out_is_that_of_all_draws(
    kinds: list[tuple[list[float], int]], sharing: int
) -> None:
    workloads = tuple(
        Workload(f"w{number}", 10, 100, tuple(sorted(sizes)), count)
        for number, (sizes, count) in enumerate(kinds)
    )
    plan = Plan(L4, workloads)
    sharing = min(sharing, plan.count)
    found = memory_of(plan, sharing).ooms_per_week / HOURS_A_WEEK
    assert found == pytest.approx(oracle_share_short(plan, sharing), abs=0.05)


def test_constant_memory_fits_always_or_never() -> None:
    plan = Plan(L4, (replace(API, memory_gib=(7.0,)),))
    assert [memory_of(plan, sharing).ooms_per_week for sharing in (1, 3, 4)] == [
        0.0,
        0.0,
        HOURS_A_WEEK,
    ]


def advice_of(*rows: Row) -> Advice:
    return Advice(Plan(L4, (API,)), rows, best(rows), {Mechanism.MPS: 4}, ())


def test_the_sentence_says_what_to_do_and_what_keeps_it_from_being_more() -> None:
    slow = row(3, keeps=False, p95=2.345)
    assert sentence(advice_of(row(1), row(2), slow)) == (
        "Make 2 replicas of the NVIDIA L4: with 3, 95 of 100 requests of api take up to 2.35 times "
        "as long as alone, and the goal is 2."
    )
    full = row(2, keeps=False, ooms_per_week=3.0)
    assert sentence(advice_of(row(1), full)).startswith(
        "Do not share the NVIDIA L4: with 2, memory"
    )
    never = row(1, keeps=False, refused=1.0)
    assert "Not even one pod" in sentence(advice_of(never))
    assert "what more pods would cost was not tried" in sentence(advice_of(row(1), row(2)))


def test_who_is_left_out_is_said_with_what_they_need() -> None:
    text = " ".join(remarks(advice_of(row(1), row(2, left_out=6), row(3, keeps=False))))
    assert "6 of 8 pods get no replica on 1 GPU and wait: all of them need 4 GPUs." in text
    assert "By MPS 4 pods would share a GPU" in text


def test_the_configuration_is_one_that_the_plugin_takes(tmp_path: Path) -> None:
    text = configuration(advice_of(row(1), row(2), row(3), row(4, keeps=False)))
    assert yaml.safe_load(text)["sharing"]["timeSlicing"]["resources"][0]["replicas"] == 3
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert not load_settings({}, {}, str(file)).warnings


def test_what_keeps_a_gpu_idle_is_what_keeps_it_from_more_replicas() -> None:
    busy = Plan(L4, (API,), Goals(min_utilization=0.9))

    def told(*rows: Row) -> str:
        return remarks(Advice(busy, rows, best(rows), {}, ()))[0]

    begin = "The GPU is busy for 50 % of the time then, less than the 90 % that you want: "
    assert told(row(1), row(2)) == f"{begin}there is no more work for it."
    assert told(row(1), row(2, keeps=False, p95=3.0)) == (
        f"{begin}the goal for slowdown is in the way."
    )
    assert told(row(1), row(2, keeps=False, refused=0.5)) == f"{begin}memory is in the way."
    assert told(row(1), row(2, keeps=False, ooms_per_week=1)) == f"{begin}memory is in the way."


def test_no_more_pods_share_a_gpu_by_another_mechanism_than_there_are() -> None:
    three = Plan(L4, (replace(API, count=3),))
    (text,) = remarks(Advice(three, (row(1),), 1, {Mechanism.MPS: 20}, ()))
    assert text.startswith("By MPS 3 pods would share a GPU")


def test_a_gpu_with_more_memory_than_its_model_is_one_for_a_pod_alone_too() -> None:
    large = replace(API, count=1, memory_gib=(30.0,), arrival="open")
    first, *_ = table_of(Plan(L4, (large,), memory_gib=40.0), InProcess())
    assert first.p95 == pytest.approx(1.0)


@pytest.mark.slow
def test_what_is_assumed_is_tried_otherwise() -> None:
    one = replace(API, count=1, busy_ms=50.0)
    plain = advise(Plan(L4, (replace(one, assumed=frozenset()),)), InProcess())
    assert {what.what for what in plain.assumptions} == {"requests", "memory"}
    seen = replace(one, active=0.5, assumed=frozenset({"arrival", "occupancy", "share"}))
    advice = advise(Plan(L4, (seen,)), InProcess())
    assert {what.what for what in advice.assumptions} == {
        *("requests", "arrivals", "occupancy", "busy time", "activity", "memory")
    }


def test_memory_that_was_measured_has_its_context_already() -> None:
    plan = Plan(L4, (replace(API, count=2, memory_gib=(4.0,)),))
    measured = replace(plan, workloads=(replace(plan.workloads[0], with_context=True),))
    context_gib = plan.profile.context_bytes / GIB
    assert context_gib > 0
    more = memory_of(plan, 2).mean_gib - memory_of(measured, 2).mean_gib
    assert more == pytest.approx(2 * context_gib)


def test_samples_of_shorter_windows_run_out_more_often() -> None:
    one = Workload("w", 10, 100, (1.0, 12.0), 2)
    hours = memory_of(Plan(L4, (one,)), 2).ooms_per_week
    minutes = memory_of(Plan(L4, (replace(one, memory_window_s=60.0),)), 2).ooms_per_week
    assert hours == pytest.approx(HOURS_A_WEEK / 4, rel=0.1)
    assert minutes == pytest.approx(60 * hours)
