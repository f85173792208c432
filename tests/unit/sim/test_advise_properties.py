"""More of something good never lowers the number that is recommended."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.advise.advice import Goals, Plan, best, table_of
from sim.advise.workload import Workload
from tests.unit.sim.inprocess import InProcess

TIE = 1.05
"""Slowdowns that differ by less are the same, as far as trials of this length tell."""


def workloads(least_ms: float, most_kinds: int) -> st.SearchStrategy[tuple[Workload, ...]]:
    """Kinds of pods whose requests take `least_ms` or more, of all loads up to nearly all."""
    one = st.builds(
        lambda busy_ms, share, memory_gib, count: Workload(
            "", busy_ms, busy_ms / share, (memory_gib,), count
        ),
        st.floats(least_ms, 100.0),
        st.floats(0.05, 0.95),
        st.floats(0.5, 9.0),
        st.integers(1, 5),
    )
    named = st.lists(one, min_size=1, max_size=most_kinds)
    return named.map(
        lambda found: tuple(replace(one, name=f"w{place}") for place, one in enumerate(found))
    )


GOAL = st.floats(1.2, 6.0)
FEW = settings(max_examples=8, deadline=None)
"""Each example is some thirty trials."""


def number(plan: Plan, tie: float = 1.0) -> int:
    goals = Goals(slowdown_p95=tie * plan.goals.slowdown_p95)
    return best(table_of(replace(plan, goals=goals), InProcess()))


def faster(one: Workload) -> Workload:
    """On a GPU that is twice as fast; the time between requests stays."""
    busy_ms = one.busy_ms / 2
    return replace(one, busy_ms=busy_ms, period_ms=one.period_ms - busy_ms)


@pytest.mark.slow
@FEW
@given(workloads(0.3, 2), GOAL, st.floats(8.0, 48.0))
def test_more_memory_never_lowers_the_number(
    kinds: tuple[Workload, ...], goal: float, memory_gib: float
) -> None:
    plan = Plan("l4", kinds, Goals(slowdown_p95=goal), memory_gib=memory_gib)
    assert number(replace(plan, memory_gib=1.5 * memory_gib)) >= number(plan)


@pytest.mark.slow
@FEW
@given(workloads(0.3, 1), GOAL)
def test_fewer_equal_pods_never_lower_the_number(kinds: tuple[Workload, ...], goal: float) -> None:
    (one,) = kinds
    plan = Plan("l4", (replace(one, count=one.count + 1),), Goals(slowdown_p95=goal))
    assert number(replace(plan, workloads=kinds)) >= number(plan)


@pytest.mark.slow
@FEW
@given(workloads(4.2, 2), GOAL)
def test_a_faster_gpu_never_lowers_the_number_where_requests_are_longer_than_slices(
    kinds: tuple[Workload, ...], goal: float
) -> None:
    plan = Plan("l4", kinds, Goals(slowdown_p95=goal))
    on_faster = replace(plan, workloads=tuple(map(faster, kinds)))
    assert number(on_faster, TIE) >= number(plan)


def test_a_faster_gpu_lowers_it_where_requests_are_shorter_than_slices() -> None:
    """The counterexample of the documents: a slice of a neighbour does not become shorter."""
    goals = Goals(slowdown_p95=3.0)
    api, training = Workload("api", 2.0, 40.0, (1.0,)), Workload("training", 250.0, 260.0, (1.0,))
    plan = Plan("l4", (api, training), goals)
    before, after = (
        table_of(one, InProcess())
        for one in (plan, replace(plan, workloads=(faster(api), faster(training))))
    )
    assert (best(before), best(after)) == (20, 1)


def test_fewer_pods_lower_it_where_those_that_are_left_are_heavier() -> None:
    """The other counterexample: with less light pods around, heavy ones meet more often."""
    goals = Goals(slowdown_p95=1.9)
    training = Workload("training", 250.0, 260.0, (1.0,), count=2)
    light = Workload("notebook", 5.0, 500.0, (0.1,), count=60)
    both = table_of(Plan("l4", (training, light), goals), InProcess())
    alone = table_of(Plan("l4", (training,), goals), InProcess())
    assert best(both) > best(alone)
