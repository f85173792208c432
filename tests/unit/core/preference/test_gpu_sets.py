"""The ranked sets of a node's GPUs: against force, and how many of them a request looks at."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, overload

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuplugin.core.preference import PreferenceIndex
from gpuplugin.core.preference.index import GpuSets
from gpuplugin.core.preference.linked import choose_linked
from hal import MigDevice
from tests.unit.builders import a_resource
from tests.unit.core.preference.topologies import (
    STRUCTURED,
    best_by_force,
    families_of_16,
    islands,
    pair_sum,
    wired,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.core.preference.topologies import Wiring

MAX_LOOKS = 12870 + 16
"""One at each set of 8 of 16 GPUs, the most there are of a size, and those of a binary search."""


class Counted(Sequence[int]):
    """A sequence that counts how often one of its items was looked at."""

    def __init__(self, items: Sequence[int]) -> None:
        self._items = items
        self.looks = 0

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...
    def __getitem__(self, place: int | slice) -> int | Sequence[int]:
        found = self._items[place]
        self.looks += 1 if isinstance(found, int) else len(found)
        return found


@st.composite
def pair_scores(draw: st.DrawFn, max_count: int) -> list[list[int]]:
    """Scores of few kinds, so that many sets are equal."""
    count = draw(st.integers(2, max_count))
    palette = draw(st.lists(st.integers(0, 1860), min_size=1, max_size=4))
    scores = [[0] * count for _ in range(count)]
    for one, other in combinations(range(count), 2):
        scores[one][other] = scores[other][one] = draw(st.sampled_from(palette))
    return scores


@given(pair_scores(7))
def test_every_set_is_there_once_with_its_score(scores: list[list[int]]) -> None:
    count = len(scores)

    sets = GpuSets.of(scores)

    for size in range(count + 1):
        expected = {
            sets.set_of(gpus): pair_sum(scores, gpus) for gpus in combinations(range(count), size)
        }
        found = list(sets.of_size[size])
        assert sorted(found) == sorted(expected)
        assert [sets.scores[one] for one in found] == sorted(expected.values(), reverse=True)


@settings(max_examples=400)
@given(pair_scores(9), st.data())
def test_the_best_set_is_that_by_force(scores: list[list[int]], data: st.DataObject) -> None:
    gpus = data.draw(st.permutations(range(len(scores))))
    fixed = gpus[: data.draw(st.integers(0, len(gpus) - 2))]
    free = gpus[len(fixed) : data.draw(st.integers(len(fixed) + 2, len(gpus)))]
    missing = data.draw(st.integers(1, len(free) - 1))
    sets = GpuSets.of(scores)

    best = sets.best(sets.set_of(fixed), sets.set_of(free), missing)

    assert best == sets.set_of((*fixed, *best_by_force(scores, free, fixed, missing)))


def requests_among_16(seed: int) -> Iterator[tuple[list[int], list[int], int]]:
    """Fixed GPUs, free GPUs and how many of them are missing, for each size that is a choice."""
    rng = random.Random(seed)
    for size in range(1, 16):
        gpus = rng.sample(range(16), 16)
        fixed = gpus[: rng.choice([0, 0, 1, 2])]
        free = sorted(gpus[len(fixed) : 16 - rng.choice([0, 0, 1, 3])])
        if size > len(fixed) and size - len(fixed) < len(free):
            yield fixed, free, size - len(fixed)


@pytest.mark.parametrize("seed", range(24))
def test_16_gpus_get_the_best_set_by_force(seed: int) -> None:
    index = wired(16, families_of_16(seed))
    for fixed, free, missing in requests_among_16(seed):
        choice = choose_linked(
            index,
            [index.ids[gpu] for gpu in free],
            [index.ids[gpu] for gpu in fixed],
            len(fixed) + missing,
        )

        best = best_by_force(index.pair_scores, free, fixed, missing)
        assert tuple(index.rank[one] for one in choice.ids) == (*fixed, *best)
        assert choice.method == "exact"


@pytest.mark.parametrize("seed", range(100))
def test_no_request_looks_at_the_sets_twice(seed: int) -> None:
    looked = counted(sets_of(families_of_16(seed)), seed)

    assert max(looked) <= MAX_LOOKS


@pytest.mark.parametrize("topology", STRUCTURED)
def test_no_request_among_linked_gpus_looks_at_the_sets_twice(topology: str) -> None:
    looked = counted(sets_of(STRUCTURED[topology]), 0)

    assert max(looked) <= MAX_LOOKS


def sets_of(wiring: Wiring) -> GpuSets:
    sets = wired(16, wiring).sets
    assert sets is not None
    return sets


def counted(sets: GpuSets, seed: int) -> list[int]:
    """The looks at sets, and those at scores, of the requests that look at the most."""
    looks = [0, 0]
    for fixed, free, missing in requests_among_16(seed):
        scores = Counted(sets.scores)
        of_size = [Counted(one) for one in sets.of_size]
        watched = GpuSets(sets.count, scores, of_size)
        watched.best(watched.set_of(fixed), watched.set_of(free), missing)
        looks = [max(looks[0], sum(one.looks for one in of_size)), max(looks[1], scores.looks)]
    return looks


def test_one_look_is_enough_where_all_gpus_are_free() -> None:
    sets = GpuSets.of(wired(16, islands(4)).pair_scores)
    of_size = [Counted(one) for one in sets.of_size]

    GpuSets(16, sets.scores, of_size).best(0, sets.set_of(range(16)), 8)

    assert sum(one.looks for one in of_size) == 1


def test_a_request_for_whole_gpus_goes_by_the_sets() -> None:
    index = wired(16, islands(4))
    assert index.sets is not None
    of_size = [Counted(one) for one in index.sets.of_size]
    watched = replace(index, sets=GpuSets(16, index.sets.scores, of_size))

    choose_linked(watched, index.ids[3:], index.ids[:1], 6)

    assert [size for size, one in enumerate(of_size) if one.looks] == [6]


def test_the_sets_of_16_gpus_are_small() -> None:
    sets = GpuSets.of(wired(16, islands(4)).pair_scores)

    tables = [memoryview(one) for one in (sets.scores, *sets.of_size)]  # type: ignore[arg-type]
    assert sum(table.nbytes for table in tables) == 6 * 2**16


def test_sets_are_made_where_they_can_be_asked_for() -> None:
    mig = MigDevice("MIG-a", 0, 1, 0, "1g.10gb", 10)
    whole, shared = a_resource(2, 1), a_resource(2, 2)
    mixed = replace(whole, devices=(*shared.devices[:2], whole.devices[1]))
    sliced = replace(whole, devices=tuple(replace(one, mig=mig) for one in whole.devices))

    assert PreferenceIndex.of(whole).sets is not None
    assert PreferenceIndex.of(mixed).sets is not None
    assert PreferenceIndex.of(a_resource(16, 1)).sets is not None
    assert PreferenceIndex.of(a_resource(17, 1)).sets is None
    assert PreferenceIndex.of(shared).sets is None
    assert PreferenceIndex.of(sliced).sets is None
