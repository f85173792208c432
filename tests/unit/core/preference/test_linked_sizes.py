"""Whole GPUs of large nodes: exact at 16, greedy above, with the properties that this has."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.machine import instructions
from gpuplugin.core.preference.linked import choose_linked
from hal import Link, LinkKind
from tests.unit.core.preference.topologies import (
    STRUCTURED,
    all_equal,
    best_by_force,
    islands,
    pair_sum,
    pcie_tree,
    ring,
    wired,
)

if TYPE_CHECKING:
    from tests.unit.core.preference.topologies import Wiring

SIZES_OF_16 = (2, 3, 5, 8, 11, 13, 15)


def random_wiring(seed: int, count: int, *, nvlinks: bool) -> Wiring:
    """Links drawn one by one, without any structure."""
    rng = random.Random(seed)
    table = {
        (one, other): Link(
            rng.choice(list(LinkKind)), rng.choice([0, 0, 1, 2, 4, 18]) if nvlinks else 0
        )
        for one in range(count)
        for other in range(one)
    }
    return lambda one, other: table[max(one, other), min(one, other)]


@pytest.mark.parametrize("size", SIZES_OF_16)
@pytest.mark.parametrize("topology", STRUCTURED)
def test_16_gpus_get_the_best_set_there_is(topology: str, size: int) -> None:
    index = wired(16, STRUCTURED[topology])

    choice = choose_linked(index, index.ids, (), size)

    best = best_by_force(index.pair_scores, range(16), (), size)
    assert choice.method == "exact"
    assert tuple(index.rank[one] for one in choice.ids) == best


@pytest.mark.parametrize("size", SIZES_OF_16)
@pytest.mark.parametrize("nvlinks", [False, True])
def test_16_gpus_with_random_links_get_the_best_set_there_is(size: int, nvlinks: bool) -> None:
    index = wired(16, random_wiring(size, 16, nvlinks=nvlinks))

    choice = choose_linked(index, index.ids, (), size)

    best = best_by_force(index.pair_scores, range(16), (), size)
    assert choice.method == "exact"
    assert tuple(index.rank[one] for one in choice.ids) == best


@pytest.mark.parametrize("topology", STRUCTURED)
def test_14_of_16_gpus_with_one_that_must_be_included(topology: str) -> None:
    index = wired(16, STRUCTURED[topology])
    free = [gpu for gpu in range(16) if gpu not in {0, 5, 9}]
    ids = [index.ids[gpu] for gpu in free]

    choice = choose_linked(index, ids, (index.ids[9],), 6)

    best = best_by_force(index.pair_scores, free, (9,), 5)
    assert tuple(index.rank[one] for one in choice.ids) == (9, *best)


WIRINGS = {
    "all equal": all_equal,
    "islands": islands(8),
    "pcie tree": pcie_tree(64),
    "ring": ring(64),
    "random paths": random_wiring(1, 64, nvlinks=False),
    "random links": random_wiring(2, 64, nvlinks=True),
}
LARGE = {
    (name, count): wired(count, wiring) for name, wiring in WIRINGS.items() for count in (17, 64)
}


@given(st.sampled_from(sorted(LARGE)), st.data())
def test_a_greedy_choice_is_sound_and_never_worse_than_the_first_that_are_free(
    node: tuple[str, int], data: st.DataObject
) -> None:
    index = LARGE[node]
    order = data.draw(st.permutations(index.ids))
    available = order[: data.draw(st.integers(2, len(order)))]
    others = data.draw(st.permutations(index.ids))
    must_include = others[: data.draw(st.integers(0, 3))]
    free = sorted(index.rank[one] for one in set(available) - set(must_include))
    size = len(must_include) + data.draw(st.integers(0, len(free)))

    choice = choose_linked(index, available, must_include, size)

    ranks = [index.rank[one] for one in choice.ids]
    fixed = ranks[: len(must_include)]
    assert choice.ids[: len(must_include)] == tuple(must_include)
    assert set(ranks[len(must_include) :]) <= set(free)
    assert len(set(ranks)) == size
    assert choice == choose_linked(index, sorted(available), must_include, size)
    first = [*fixed, *free[: size - len(fixed)]]
    assert pair_sum(index.pair_scores, ranks) >= pair_sum(index.pair_scores, first)


@pytest.mark.parametrize("size", [1, 2, 16, 32, 63])
@pytest.mark.parametrize("name", ["all equal", "islands", "pcie tree"])
def test_64_gpus_in_a_hierarchy_get_the_best_set_there_is(name: str, size: int) -> None:
    index = LARGE[name, 64]

    choice = choose_linked(index, index.ids, (), size)

    expected = pair_sum(index.pair_scores, range(size))
    assert choice.method == "greedy"
    assert pair_sum(index.pair_scores, (index.rank[one] for one in choice.ids)) == expected


@pytest.mark.parametrize(
    ("available", "size", "expected"),
    [
        pytest.param([1, 2, 3, *range(8, 16)], 8, range(8, 16), id="an island that is whole"),
        pytest.param([1, 2, 3, *range(8, 16)], 3, [1, 2, 3], id="leave the whole island"),
        pytest.param([9, 1, 2, 3, 4], 1, [9], id="the odd one first"),
        pytest.param(range(64), 2, [0, 1], id="nothing taken: the lowest"),
    ],
)
def test_a_greedy_choice_among_islands_of_eight(
    available: list[int], size: int, expected: list[int]
) -> None:
    index = LARGE["islands", 64]

    choice = choose_linked(index, [index.ids[gpu] for gpu in available], (), size)

    assert [index.rank[one] for one in choice.ids] == list(expected)


@pytest.mark.parametrize("seed", range(8))
def test_a_greedy_choice_is_near_the_best_of_a_few_gpus(seed: int) -> None:
    index = wired(40, random_wiring(seed, 40, nvlinks=True))
    free = random.Random(seed).sample(range(40), 10)
    for size in range(2, 10):
        choice = choose_linked(index, [index.ids[gpu] for gpu in free], (), size)
        found = pair_sum(index.pair_scores, (index.rank[one] for one in choice.ids))
        best = pair_sum(index.pair_scores, best_by_force(index.pair_scores, free, (), size))
        assert found >= 0.75 * best


def test_the_cost_of_a_greedy_choice_is_a_row_for_each_gpu() -> None:
    """No search: with twice the GPUs at most some four times the work."""
    half, whole = (wired(count, random_wiring(3, count, nvlinks=True)) for count in (32, 64))
    few = instructions(lambda: choose_linked(half, half.ids, (), 16))
    many = instructions(lambda: choose_linked(whole, whole.ids, (), 32))

    assert many <= 6 * few
