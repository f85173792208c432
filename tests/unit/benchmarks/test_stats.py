"""Quantiles, intervals and ratios: known values, and what holds for all samples."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.results import Interval, estimate, interval_ranks, quantile, ratio

FLOATS = st.floats(min_value=0.001, max_value=1e6)
SAMPLES = st.lists(FLOATS, min_size=1, max_size=60)


def test_a_quantile_lies_between_its_neighbours() -> None:
    assert quantile([1, 2, 3, 4], 0.5) == 2.5
    assert quantile([1, 2, 3], 0.5) == 2
    assert quantile([7], 0.99) == 7
    assert quantile(list(range(101)), 0.99) == 99


def test_no_samples_are_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        estimate([], 0.5)
    with pytest.raises(ValueError, match="go in pairs"):
        ratio([], [], 0.5, 1)
    with pytest.raises(ValueError, match="go in pairs"):
        ratio([[1.0]], [[1.0], [2.0]], 0.5, 1)


@pytest.mark.parametrize(
    ("count", "share", "ranks"),
    [
        # Of tables for the median at 95 %, whose ranks count from 1.
        (6, 0.5, (0, 5)),
        (10, 0.5, (1, 8)),
        (20, 0.5, (5, 14)),
        (100, 0.5, (39, 60)),
        # Too few samples: no two of five hold the median with so much confidence.
        (5, 0.5, (None, None)),
        (1, 0.5, (None, None)),
        # 0.99^100 is 0.37: even the largest of a hundred may well be below p99.
        (100, 0.99, (96, None)),
    ],
)
def test_ranks_of_an_interval(
    count: int, share: float, ranks: tuple[int | None, int | None]
) -> None:
    assert interval_ranks(count, share) == ranks


def test_an_interval_holds_the_true_median_about_as_often_as_it_says() -> None:
    chance = random.Random(5)
    held = 0
    for _ in range(400):
        interval = estimate([chance.expovariate(1) for _ in range(40)], 0.5).interval
        assert interval.low is not None
        assert interval.high is not None
        held += interval.low <= 0.6931 <= interval.high
    assert 0.93 <= held / 400 <= 0.99


@given(SAMPLES, st.sampled_from([0.5, 0.9, 0.99]))
def test_an_estimate_is_within_its_interval_and_its_samples(
    samples: list[float], share: float
) -> None:
    found = estimate(samples, share)
    low, high = found.interval.low, found.interval.high
    assert min(samples) <= found.value <= max(samples)
    assert low is None or low <= found.value
    assert high is None or found.value <= high
    assert estimate(reversed(samples), share) == found


def test_a_ratio_is_free_of_what_both_halves_of_a_round_have_in_common() -> None:
    chance = random.Random(3)
    rounds, floor = [], []
    for _ in range(30):
        load = chance.uniform(1, 20)
        rounds.append([2 * load * chance.uniform(0.99, 1.01) for _ in range(9)])
        floor.append([load * chance.uniform(0.99, 1.01) for _ in range(9)])
    found = ratio(rounds, floor, 0.5, 1)
    assert found.value == pytest.approx(2, rel=0.01)
    assert found.interval.low is not None
    assert found.interval.high is not None
    assert 1.98 < found.interval.low <= found.value <= found.interval.high < 2.02


def test_a_ratio_of_p99_is_that_of_all_rounds_together() -> None:
    rounds = [[1.0] * 9 + [50.0]] * 20
    assert ratio(rounds, [[1.0] * 10] * 20, 0.99, 1).value == 50


def test_a_seed_decides_on_the_resampling() -> None:
    chance = random.Random(9)
    rounds = [[chance.uniform(1, 2)] for _ in range(40)]
    floor = [[chance.uniform(1, 2)] for _ in range(40)]
    for share in (0.5, 0.99):
        found = [ratio(rounds, floor, share, seed) for seed in (1, 1, 2, 3, 4)]
        assert found[0] == found[1]
        assert len({one.interval for one in found}) > 1


def test_a_ratio_of_few_rounds_has_no_interval() -> None:
    found = ratio([[2.0], [4.0]] * 2 + [[6.0]], [[1.0]] * 5, 0.5, 1)
    assert (found.value, found.interval) == (4, Interval(None, None))
    assert ratio([[2.0]] * 6, [[1.0]] * 6, 0.5, 1).interval == Interval(2, 2)


@given(st.lists(st.tuples(SAMPLES, SAMPLES), min_size=6, max_size=9), st.integers())
def test_a_ratio_lies_within_its_interval(
    pairs: list[tuple[list[float], list[float]]], seed: int
) -> None:
    rounds, floor = [one for one, _ in pairs], [other for _, other in pairs]
    found = ratio(rounds, floor, 0.5, seed)
    assert found.interval.low is not None
    assert found.interval.high is not None
    assert found.interval.low <= found.value * (1 + 1e-9)
    assert found.value <= found.interval.high * (1 + 1e-9)


def test_intervals_overlap_unless_one_is_wholly_above() -> None:
    assert Interval(1, 3).overlaps(Interval(3, 4))
    assert not Interval(1, 2).overlaps(Interval(3, 4))
    assert not Interval(3, 4).overlaps(Interval(1, 2))
    assert Interval(1, None).overlaps(Interval(3, 4))
    assert not Interval(5, None).overlaps(Interval(3, 4))
