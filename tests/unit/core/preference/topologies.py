"""Resources of whole GPUs with links, real and made up, and what is best among them by force."""

from __future__ import annotations

from itertools import combinations
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpuplugin.core.preference import PreferenceIndex
from hal import Link, LinkKind
from tests.unit.builders import a_resource, uuid_of_gpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gpuplugin.core.preference.problem import Problem

    Wiring = Callable[[int, int], Link]

PATH_SCORES = {
    LinkKind.CROSS_CPU: 10,
    LinkKind.SAME_CPU: 20,
    LinkKind.HOST_BRIDGE: 30,
    LinkKind.MULTI_SWITCH: 40,
    LinkKind.SINGLE_SWITCH: 50,
    LinkKind.SAME_BOARD: 60,
}


def score_of(link: Link) -> int:
    """As the reference has it, for links that can exist."""
    return PATH_SCORES[link.kind] + 100 * link.nvlinks


def all_equal(_one: int, _other: int) -> Link:
    return Link(LinkKind.SAME_CPU, 18)


def islands(size: int) -> Wiring:
    def wiring(one: int, other: int) -> Link:
        if one // size == other // size:
            return Link(LinkKind.SAME_CPU, 4)
        return Link(LinkKind.CROSS_CPU)

    return wiring


def pcie_tree(count: int) -> Wiring:
    """Pairs on switches, two switches on a host bridge, two sockets."""

    def wiring(one: int, other: int) -> Link:
        for size, kind in (
            (2, LinkKind.SINGLE_SWITCH),
            (4, LinkKind.HOST_BRIDGE),
            (count // 2, LinkKind.SAME_CPU),
        ):
            if one // size == other // size:
                return Link(kind)
        return Link(LinkKind.CROSS_CPU)

    return wiring


def ring(count: int) -> Wiring:
    def wiring(one: int, other: int) -> Link:
        kind = LinkKind.SAME_CPU if 2 * one // count == 2 * other // count else LinkKind.CROSS_CPU
        return Link(kind, 2 if (one - other) % count in {1, count - 1} else 0)

    return wiring


def hypercube(one: int, other: int) -> Link:
    return Link(LinkKind.SAME_CPU, 2 if (one ^ other).bit_count() == 1 else 0)


def two_camps(one: int, other: int) -> Link:
    """Every GPU is linked to those of the other camp only: the hardest for the search so far."""
    return Link(LinkKind.SAME_CPU, 2 if (one ^ other) & 1 and (one + 1) % 16 != other else 0)


STRUCTURED: Mapping[str, Wiring] = MappingProxyType(
    {
        "all equal": all_equal,
        "2x8 islands": islands(8),
        "4x4 islands": islands(4),
        "pairs": islands(2),
        "pcie tree": pcie_tree(16),
        "ring": ring(16),
        "hypercube": hypercube,
        "two camps": two_camps,
    }
)
"""Topologies of 16 GPUs."""


def links_of(count: int, wiring: Wiring) -> dict[tuple[str, str], Link]:
    return {
        (uuid_of_gpu(one), uuid_of_gpu(other)): wiring(one, other)
        for one in range(count)
        for other in range(count)
        if one != other
    }


def wired(count: int, wiring: Wiring) -> PreferenceIndex:
    return PreferenceIndex.of(a_resource(count, 1), links_of(count, wiring))


def pair_sum(scores: Sequence[Sequence[int]], gpus: Iterable[int]) -> int:
    """The score of a set of GPUs, word for word."""
    return sum(scores[one][other] for one, other in combinations(sorted(gpus), 2))


def best_by_force(
    scores: Sequence[Sequence[int]], free: Sequence[int], fixed: Sequence[int], missing: int
) -> tuple[int, ...]:
    """The best GPUs to add to `fixed`: own score, then the score that is left, then order."""

    def merit(added: tuple[int, ...]) -> tuple[int, int]:
        own = pair_sum(scores, (*fixed, *added))
        return own, pair_sum(scores, set(free) - set(added))

    # `max` takes the first of equals, and combinations come in lexicographic order.
    return max(combinations(sorted(free), missing), key=merit)


def best_of_table(problem: Problem, size: int) -> int:
    """The best score of a problem by a table of all its subsets, each made from a smaller one."""
    count = len(problem.values)
    table = [0] * (1 << count)
    for item, (value, row) in enumerate(zip(problem.values, problem.pulls, strict=True)):
        bit = 1 << item
        pulls = [0]
        for pull in row[:item]:
            pulls += [total + pull for total in pulls]
        for subset in range(bit):
            table[bit | subset] = table[subset] + value + pulls[subset]
    return max(score for subset, score in enumerate(table) if subset.bit_count() == size)
