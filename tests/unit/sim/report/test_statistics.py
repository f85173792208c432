from __future__ import annotations

from array import array
from operator import itemgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.study.report import CURVE, Requests, fairness, mean, percentile, share_of


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100)]
)
def test_percentiles_of_one_to_a_hundred_are_those_numbers(share: float, expected: int) -> None:
    assert percentile(range(1, 101), share) == expected


def test_every_percentile_of_a_hundred_values_is_of_its_own_rank() -> None:
    # 0.07 * 100 is above 7 in floating point, 0.29 * 100 is below 29.
    got = [percentile(range(1, 101), percent / 100) for percent in range(1, 101)]
    assert got == list(range(1, 101))


def test_one_value_is_every_percentile() -> None:
    assert {percentile([7], share) for share in CURVE} == {7}


@given(st.lists(st.integers(1, 10**12), min_size=1), st.sampled_from(CURVE))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(
    values: list[int], share: float
) -> None:
    values.sort()
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) <= share * len(values) + 1e-6


@pytest.mark.parametrize(
    ("values", "index"),
    [
        ([1, 1, 1, 1], 1.0),
        ([1, 0, 0, 0], 0.25),
        ([1, 0.5], 0.9),
        ([3], None),
        ([], None),
        ([0, 0], None),
    ],
)
def test_fairness(values: list[float], index: float | None) -> None:
    assert fairness(values) == (None if index is None else pytest.approx(index))


def test_requests_without_any() -> None:
    nothing = Requests([])
    assert (nothing.slowdown, nothing.speed, nothing.alone_ms) == (None, None, None)
    assert (nothing.latency_ms, nothing.wait_ms, nothing.latency_curve) == (None, None, [])


@given(
    st.lists(
        st.tuples(st.integers(1, 10**9), st.integers(0, 10**9)).map(
            lambda pair: (pair[0] + pair[1], pair[0])
        ),
        min_size=1,
    )
)
def test_requests_against_plain_arithmetic(pairs: list[tuple[int, int]]) -> None:
    half = len(pairs) // 2
    parts = [
        (array("q", map(itemgetter(0), part)), array("q", map(itemgetter(1), part)))
        for part in (pairs[:half], pairs[half:])
    ]
    got = Requests(parts)
    assert got.slowdown == pytest.approx(
        sum(latency / work for latency, work in pairs) / len(pairs)
    )
    waits = sorted(latency - work for latency, work in pairs)
    assert got.wait_ms is not None
    assert got.wait_ms.p50 == percentile(waits, 0.5) / 1e6
    assert got.wait_ms.max == waits[-1] / 1e6
    assert got.latency_curve[-1] == (1.0, max(latency for latency, _ in pairs) / 1e6)


def test_means_and_shares_of_nothing() -> None:
    assert mean([None, 1.0, 3.0]) == 2.0
    assert mean([None]) is None
    assert share_of(1, 0) is None
