"""The policy for whole GPUs, against force."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuplugin.core.inventory import Resource
from gpuplugin.core.preference import Choice, PreferenceIndex
from gpuplugin.core.preference.linked import choose_linked
from hal import Link, LinkKind
from tests.unit.builders import a_resource, uuid_of_gpu
from tests.unit.core.preference.topologies import (
    best_by_force,
    islands,
    links_of,
    pair_sum,
    pcie_tree,
    score_of,
    wired,
)


@dataclass(frozen=True)
class Node:
    """Up to 8 GPUs, the links between them and a request, all as numbers of GPUs."""

    scores: tuple[tuple[int, ...], ...]
    index: PreferenceIndex
    available: tuple[int, ...]
    must_include: tuple[int, ...]
    size: int

    def ask(self) -> Choice:
        available = [uuid_of_gpu(gpu) for gpu in self.available]
        must_include = [uuid_of_gpu(gpu) for gpu in self.must_include]
        return choose_linked(self.index, available, must_include, self.size)


def some_links() -> st.SearchStrategy[Link]:
    return st.builds(Link, st.sampled_from(LinkKind), st.sampled_from([0, 0, 0, 1, 2, 18]))


@st.composite
def nodes(draw: st.DrawFn) -> Node:
    """Links of few kinds, so that many sets are equal; some missing, some lopsided."""
    count = draw(st.integers(1, 8))
    palette = draw(st.lists(some_links(), min_size=1, max_size=4))
    one_way = draw(st.booleans())
    links: dict[tuple[str, str], Link] = {}
    scores = [[0] * count for _ in range(count)]
    for one, other in combinations(range(count), 2):
        there = draw(st.sampled_from(palette))
        back = draw(st.sampled_from(palette)) if one_way else there
        if draw(st.integers(0, 9)) == 0:
            scores[one][other] = scores[other][one] = 10
            continue
        links[uuid_of_gpu(one), uuid_of_gpu(other)] = there
        links[uuid_of_gpu(other), uuid_of_gpu(one)] = back
        scores[one][other] = scores[other][one] = min(score_of(there), score_of(back))
    order = draw(st.permutations(range(count)))
    available = order[: draw(st.integers(0, count))]
    must_include = draw(st.permutations(range(count)))[: draw(st.integers(0, min(3, count)))]
    return Node(
        scores=tuple(map(tuple, scores)),
        index=PreferenceIndex.of(a_resource(count, 1), links),
        available=tuple(available),
        must_include=tuple(must_include),
        size=draw(st.integers(-1, count + 1)),
    )


@settings(max_examples=250)
@given(nodes())
def test_the_choice_is_the_best_by_force(node: Node) -> None:
    free = sorted(set(node.available) - set(node.must_include))
    missing = min(max(node.size - len(node.must_include), 0), len(free))

    choice = node.ask()

    best = best_by_force(node.scores, free, node.must_include, missing)
    expected = tuple(uuid_of_gpu(gpu) for gpu in (*node.must_include, *best))
    assert choice == Choice(expected, "exact")


@given(nodes(), st.integers())
def test_order_and_repeats_of_the_available_ids_do_not_matter(node: Node, seed: int) -> None:
    available = [uuid_of_gpu(gpu) for gpu in (*node.available, *node.available)]
    random.Random(seed).shuffle(available)
    must_include = [uuid_of_gpu(gpu) for gpu in node.must_include]

    assert choose_linked(node.index, available, must_include, node.size) == node.ask()


def wild_ids() -> st.SearchStrategy[list[str]]:
    return st.lists(
        st.one_of(st.integers(-1, 9).map(abs).map(uuid_of_gpu), st.text(max_size=4)), max_size=12
    )


@given(wild_ids(), wild_ids(), st.one_of(st.integers(-3, 12), st.integers(-(2**70), 2**70)))
def test_it_answers_whatever_is_asked(
    available: list[str], must_include: list[str], size: int
) -> None:
    index = wired(8, pcie_tree(8))

    choice = choose_linked(index, available, must_include, size)

    wanted = tuple(dict.fromkeys(must_include))
    usable = set(available) & set(index.ids)
    assert choice.ids[: len(wanted)] == wanted, "must-include first and whole"
    assert set(choice.ids[len(wanted) :]) <= usable, "the rest is available and known"
    assert len(set(choice.ids)) == len(choice.ids), "no device twice"
    assert len(choice.ids) == max(len(wanted), min(size, len(usable | set(wanted))))


def test_it_answers_for_a_resource_without_devices() -> None:
    index = PreferenceIndex.of(Resource("nvidia.com/gpu", ()))

    assert choose_linked(index, ["a"], ["b", "c"], 3) == Choice(("b", "c"), "exact")


@pytest.mark.parametrize(
    ("available", "must_include", "size", "expected"),
    [
        pytest.param(range(8), [], 2, [0, 1], id="nothing taken: the lowest"),
        pytest.param(range(2, 8), [], 2, [2, 3], id="the rest of a broken island first"),
        pytest.param([1, 2, 3, 4, 5, 6, 7], [], 4, [4, 5, 6, 7], id="an island that is whole"),
        pytest.param([1, 2, 3, 4, 5, 6, 7], [], 3, [1, 2, 3], id="leave the whole island"),
        pytest.param([0, 4, 5, 6, 7], [], 1, [0], id="the odd one first"),
        pytest.param([7, 6, 5, 4], [], 1, [4], id="all alike: the lowest"),
        pytest.param(range(8), [6], 3, [6, 4, 5], id="next to what must be included"),
        pytest.param(range(8), [0, 4], 3, [0, 4, 1], id="must-include in two islands"),
        pytest.param(range(8), ["gone"], 3, ["gone", 0, 1], id="must-include that is not known"),
        pytest.param([0, 1], [5], 2, [5, 0], id="must-include that is not available"),
    ],
)
def test_choices_among_two_islands_of_four(
    available: list[int], must_include: list[int | str], size: int, expected: list[int | str]
) -> None:
    def names(gpus: list[int | str]) -> tuple[str, ...]:
        return tuple(uuid_of_gpu(gpu) if isinstance(gpu, int) else gpu for gpu in gpus)

    choice = choose_linked(
        wired(8, islands(4)), [uuid_of_gpu(gpu) for gpu in available], names(must_include), size
    )

    assert choice.ids == names(expected)


def test_replicas_that_must_be_included_count_one_by_one() -> None:
    """Two replicas of GPU 0, with links to 1 and 2 that are worth less than that of 3 and 4."""

    def wiring(one: int, other: int) -> Link:
        nvlinks = {(0, 1): 2, (0, 2): 2, (3, 4): 6}.get((min(one, other), max(one, other)), 0)
        return Link(LinkKind.CROSS_CPU, nvlinks)

    shared, whole = a_resource(1, 2), a_resource(5, 1)
    resource = replace(whole, devices=(*shared.devices, *whole.devices[1:]))
    index = PreferenceIndex.of(resource, links_of(5, wiring))
    replicas = index.ids[:2]

    assert choose_linked(index, index.ids, replicas, 4).ids == index.ids[:4]
    assert choose_linked(index, index.ids[2:], replicas[:1], 3).ids == (replicas[0], *index.ids[4:])


def test_pods_of_two_fill_an_island_before_the_next() -> None:
    index = wired(8, islands(4))
    available = set(index.ids)
    pods = []
    for _ in range(4):
        pod = choose_linked(index, sorted(available), (), 2).ids
        available -= set(pod)
        pods.append({index.rank[one] // 4 for one in pod})

    assert pods == [{0}, {0}, {1}, {1}]


def test_a_gpu_without_a_pair_does_not_break_it() -> None:
    """One NVLink pair and singles, 5 available, size 3: this crashes NVIDIA's plugin."""

    def wiring(one: int, other: int) -> Link:
        return Link(LinkKind.CROSS_CPU, 2 if {one, other} == {3, 4} else 0)

    index = wired(5, wiring)

    assert choose_linked(index, index.ids, (), 3).ids == tuple(map(uuid_of_gpu, (0, 3, 4)))


def test_the_score_of_the_choice_is_never_below_that_of_a_partition() -> None:
    """A chain whose best pair is in the middle: NVIDIA takes the pairs at its ends instead."""

    def wiring(one: int, other: int) -> Link:
        nvlinks = {(0, 1): 4, (1, 2): 6, (2, 3): 4}.get((min(one, other), max(one, other)), 0)
        return Link(LinkKind.CROSS_CPU, nvlinks)

    index = wired(4, wiring)

    choice = choose_linked(index, index.ids, (), 2)

    assert choice.ids == (uuid_of_gpu(1), uuid_of_gpu(2))
    assert pair_sum(index.pair_scores, (1, 2)) > pair_sum(index.pair_scores, (0, 1))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(-1, 17))
def test_it_answers_for_replicas_too(count: int, replicas: int, size: int) -> None:
    """Nothing asks it to, but nothing may fail either."""
    index = PreferenceIndex.of(a_resource(count, replicas))

    choice = choose_linked(index, index.ids, (), size)

    assert len(set(choice.ids)) == min(max(size, 0), count * replicas)
