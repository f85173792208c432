"""The search for the best-linked GPUs on larger nodes: exact at 16, bounded beyond."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuplugin.core.preference import aligned
from gpuplugin.core.preference.aligned import as_problem
from gpuplugin.core.preference.problem import Problem
from gpuplugin.core.preference.search import MAX_ITEMS, MAX_NODES, solve
from hal import Link, LinkKind
from tests.unit.core.preference.topologies import (
    STRUCTURED,
    all_equal,
    best_by_force,
    best_of_table,
    islands,
    pair_sum,
    pcie_tree,
    ring,
    wired,
)

if TYPE_CHECKING:
    from tests.unit.core.preference.topologies import Wiring

SIZES_OF_16 = (2, 3, 5, 8, 11, 13, 15)

STEPS_AT_16 = 1000
"""Nodes that a search among 16 GPUs may look at; a few microseconds each."""


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


def problem_of(scores: list[list[int]]) -> Problem:
    """The sum of pairs, and a bit for each item so that no two choices are equal."""
    count = len(scores)
    values = [1 << (count - 1 - item) for item in range(count)]
    return Problem(values, [[score << (count + 1) for score in row] for row in scores])


@pytest.mark.parametrize("size", SIZES_OF_16)
@pytest.mark.parametrize("topology", STRUCTURED)
def test_16_gpus_get_the_best_set_there_is(topology: str, size: int) -> None:
    index = wired(16, STRUCTURED[topology])

    choice = aligned(index, index.ids, (), size)

    best = best_by_force(index.pair_scores, range(16), (), size)
    assert choice.method == "exact"
    assert tuple(index.rank[one] for one in choice.ids) == best


@pytest.mark.parametrize("size", SIZES_OF_16)
@pytest.mark.parametrize("nvlinks", [False, True])
def test_16_gpus_with_random_links_get_the_best_set_there_is(size: int, nvlinks: bool) -> None:
    index = wired(16, random_wiring(size, 16, nvlinks=nvlinks))

    choice = aligned(index, index.ids, (), size)

    best = best_by_force(index.pair_scores, range(16), (), size)
    assert choice.method == "exact"
    assert tuple(index.rank[one] for one in choice.ids) == best


@pytest.mark.parametrize("topology", STRUCTURED)
def test_14_of_16_gpus_with_one_that_must_be_included(topology: str) -> None:
    index = wired(16, STRUCTURED[topology])
    free = [gpu for gpu in range(16) if gpu not in {0, 5, 9}]
    ids = [index.ids[gpu] for gpu in free]

    choice = aligned(index, ids, (index.ids[9],), 6)

    best = best_by_force(index.pair_scores, free, (9,), 5)
    assert tuple(index.rank[one] for one in choice.ids) == (9, *best)


@settings(max_examples=30)
@given(st.integers(2, 12), st.data())
def test_a_search_finds_the_best_score_of_the_table_of_subsets(
    count: int, data: st.DataObject
) -> None:
    palette = data.draw(st.lists(st.integers(0, 1860), min_size=1, max_size=5))
    drawn = data.draw(
        st.lists(st.sampled_from(palette), min_size=count * count, max_size=count * count)
    )
    scores = [
        [
            0 if one == other else drawn[max(one, other) * count + min(one, other)]
            for one in range(count)
        ]
        for other in range(count)
    ]
    size = data.draw(st.integers(1, count - 1))
    problem = problem_of(scores)

    solution = solve(problem, size)

    assert solution.method == "exact"
    assert solution.score == best_of_table(problem, size)


@pytest.mark.parametrize("topology", STRUCTURED)
def test_a_search_among_16_is_short(topology: str) -> None:
    index = wired(16, STRUCTURED[topology])
    problem = as_problem(index, range(len(index.ids)), ())

    nodes = [solve(problem, size).nodes for size in range(1, 16)]

    assert max(nodes) <= STEPS_AT_16


@pytest.mark.parametrize("seed", range(10))
def test_a_search_among_16_with_random_links_is_short(seed: int) -> None:
    index = wired(16, random_wiring(seed, 16, nvlinks=seed % 2 == 0))
    problem = as_problem(index, range(len(index.ids)), ())

    nodes = [solve(problem, size).nodes for size in range(1, 16)]

    assert max(nodes) <= STEPS_AT_16


@pytest.mark.parametrize("size", [1, 2, 16, 32, 63])
@pytest.mark.parametrize("wiring", [all_equal, islands(8), pcie_tree(64)])
def test_64_gpus_in_a_hierarchy_get_the_best_set_there_is(wiring: Wiring, size: int) -> None:
    index = wired(64, wiring)

    choice = aligned(index, index.ids, (), size)

    lowest = tuple(range(1, 64)) if size == 63 else tuple(range(size))
    expected = pair_sum(index.pair_scores, lowest)
    assert choice.method == "exact"
    assert pair_sum(index.pair_scores, (index.rank[one] for one in choice.ids)) == expected


@pytest.mark.parametrize("size", [2, 3, 12, 32, 50])
@pytest.mark.parametrize("wiring", [ring(64), random_wiring(1, 64, nvlinks=True)])
def test_64_gpus_without_structure_get_an_answer_within_the_budget(
    wiring: Wiring, size: int
) -> None:
    index = wired(64, wiring)
    solution = solve(as_problem(index, range(len(index.ids)), ()), size)
    choice = aligned(index, index.ids, (), size)

    assert solution.nodes <= MAX_NODES
    assert len(set(choice.ids)) == size
    assert choice.method in {"exact", "bounded"}
    chosen = [index.rank[one] for one in choice.ids]
    plain = pair_sum(index.pair_scores, range(size))
    assert pair_sum(index.pair_scores, chosen) >= plain, "never worse than taking the first"


def test_a_search_that_gives_up_says_so() -> None:
    index = wired(64, random_wiring(1, 64, nvlinks=True))

    solution = solve(as_problem(index, range(len(index.ids)), ()), 32)

    assert solution.method == "bounded"
    assert solution.nodes == MAX_NODES


@pytest.mark.parametrize("size", [1, 2, 40, MAX_ITEMS])
def test_more_gpus_than_that_are_taken_greedily(size: int) -> None:
    count = MAX_ITEMS + 1
    index = wired(count, islands(5))

    choice = aligned(index, index.ids, (), size)

    assert len(set(choice.ids)) == size
    assert choice.method == ("exact" if size in {1, MAX_ITEMS} else "greedy")
    if size == 2:
        assert {index.rank[one] // 5 for one in choice.ids} == {0}
