"""What a history says of workloads: made by hand, with numbers that can be checked by head."""

from __future__ import annotations

import pytest

from hal import GIB
from sim.advise.history import History, PodSeries, Requests, workloads_of

STEP_S = 60.0
KNOWN = Requests(20.0)
U = "GPU-0"


def series(pod: str, values: list[float], namespace: str = "ml", uuid: str = U) -> PodSeries:
    samples = [(STEP_S * number, value) for number, value in enumerate(values)]
    return PodSeries(namespace, pod, uuid, samples)


def history(*sm: PodSeries, memory: tuple[PodSeries, ...] = (), contending: float = 1) -> History:
    moments = {(one.uuid, at_s): contending for one in sm for at_s, _ in one.samples}
    return History(sm, memory, moments, STEP_S)


def test_shares_are_those_of_active_periods_and_activity_is_apart() -> None:
    """Half of the time nothing, then 40 % of each period."""
    (one,), (note,) = workloads_of(
        history(series("a-0", [0.0] * 10 + [0.4] * 10)), "workload", KNOWN, "test"
    )
    assert (one.name, one.count, one.active) == ("ml/a", 1, 0.5)
    assert one.busy_ms / one.period_ms == pytest.approx(0.4)
    assert "share" not in one.assumed
    assert "active for 50 % of the time in spans of 10 minutes; busy for 40 %" in note


def test_what_was_seen_alone_counts_where_there_is_enough_of_it() -> None:
    """Half as much while another one ran: that is what it got and not what it wanted."""
    values = [0.8] * 10 + [0.4] * 10
    one = series("a-0", values)
    contending = {(U, at_s): 1.0 if value > 0.5 else 2.0 for at_s, value in one.samples}
    (found,), _ = workloads_of(History([one], [], contending, STEP_S), "workload", KNOWN, "test")
    assert found.busy_share == pytest.approx(0.8)
    (found,), (note,) = workloads_of(history(one, contending=2), "workload", KNOWN, "test")
    assert found.busy_share == pytest.approx(0.6)
    assert "share" in found.assumed
    assert "it may want more" in note


def test_pods_of_one_owner_are_one_workload_and_count_where_they_are_at_once() -> None:
    first, second = series("a-0", [0.5] * 20), series("a-1", [0.5] * 10)
    (one,), _ = workloads_of(history(first, second), "workload", KNOWN, "test")
    assert one.count == 2
    apart = PodSeries("ml", "a-1", U, [(STEP_S * (20 + number), 0.5) for number in range(20)])
    (one,), _ = workloads_of(history(first, apart), "workload", KNOWN, "test")
    assert one.count == 1
    other = series("b-0", [0.5] * 20, namespace="web")
    both, _ = workloads_of(history(first, other), "namespace", KNOWN, "test")
    assert [one.name for one in both] == ["ml", "web"]


def test_memory_is_the_most_of_each_pod_and_hour() -> None:
    hours = ([2.0 * GIB] * 60 + [3.0 * GIB] * 59 + [5.0 * GIB]) * 12
    memory = (series("a-0", hours),)
    (one,), (note,) = workloads_of(
        history(series("a-0", [0.5] * 1440), memory=memory), "workload", KNOWN, "test"
    )
    assert one.memory_gib == (2.0,) * 12 + (5.0,) * 12
    assert "holds 2 to 5 GiB" in note
    (one,), _ = workloads_of(history(series("a-0", [0.5] * 20)), "workload", KNOWN, "test")
    assert (one.memory_gib, "memory" in one.assumed) == ((0.0,), True)


def test_many_hours_become_some_quantiles_with_both_ends() -> None:
    memory = (series("a-0", [float(number // 60) * GIB for number in range(60 * 200)]),)
    (one,), _ = workloads_of(
        history(series("a-0", [0.5]), memory=memory), "workload", KNOWN, "test"
    )
    assert len(one.memory_gib) == 60
    assert (one.memory_gib[0], one.memory_gib[-1]) == (0.0, 199.0)
    assert list(one.memory_gib) == sorted(one.memory_gib)


def test_a_pod_that_never_worked_is_a_workload_that_is_not_active() -> None:
    (one,), _ = workloads_of(history(series("a-0", [0.0] * 20)), "workload", KNOWN, "test")
    assert one.active == 0.0


def test_what_is_known_of_requests_is_not_assumed() -> None:
    seen = history(series("a-0", [0.5] * 20), series("b-0", [0.5] * 20))
    known = Requests(None, {"ml/b": 400.0}, "open")
    (one, other), _ = workloads_of(seen, "workload", known, "test")
    assert (one.busy_ms, other.busy_ms) == (20.0, 400.0)
    assert (one.busy_share, other.busy_share) == pytest.approx((0.5, 0.5))
    assert one.assumed - other.assumed == {"busy_ms"}
    assert {one.arrival, other.arrival} == {"open"}
    assert "arrival" not in one.assumed | other.assumed
