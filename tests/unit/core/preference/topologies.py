"""Resources of whole GPUs with links, real and made up, and what is best among them by force."""

from __future__ import annotations

import random
from itertools import combinations
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpuplugin.core.preference import PreferenceIndex
from hal import Link, LinkKind
from tests.unit.builders import a_resource, uuid_of_gpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

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


def random_links(rng: random.Random, kinds: Sequence[LinkKind], nvlinks: Sequence[int]) -> Wiring:
    """Links drawn one by one, without any structure."""
    table = {
        pair: Link(rng.choice(kinds), rng.choice(nvlinks)) for pair in combinations(range(16), 2)
    }
    return lambda one, other: table[min(one, other), max(one, other)]


def random_cayley(rng: random.Random) -> Wiring:
    """Every GPU sees the same links, and most sets have many equals: hard for a search."""
    linked = {step for step in range(1, 16) if rng.random() < 0.5}
    return lambda one, other: Link(LinkKind.SAME_CPU, 2 if one ^ other in linked else 0)


def random_levels(rng: random.Random) -> Wiring:
    """Islands with links of their own kind, and some links between them."""
    size = rng.choice([2, 4, 8])
    linked = {step for step in range(1, 16) if rng.random() < 0.4}
    return lambda one, other: Link(
        LinkKind.SAME_CPU if one // size == other // size else LinkKind.CROSS_CPU,
        (4 if one // size == other // size else 0) + (2 if one ^ other in linked else 0),
    )


def families_of_16(seed: int) -> Wiring:
    """A topology of 16 GPUs; consecutive seeds are of different families."""
    rng = random.Random(seed)
    kinds = list(LinkKind)
    families: Sequence[Callable[[], Wiring]] = (
        lambda: random_links(rng, kinds, [0]),
        lambda: random_links(rng, kinds, range(19)),
        lambda: random_links(rng, [LinkKind.SAME_CPU], [0, 2]),
        lambda: random_links(rng, kinds[:2], [18]),
        lambda: random_cayley(rng),
        lambda: random_levels(rng),
    )
    return families[seed % len(families)]()


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

    own = {
        added: pair_sum(scores, (*fixed, *added)) for added in combinations(sorted(free), missing)
    }
    highest = max(own.values())
    # `max` takes the first of equals, and combinations come in lexicographic order.
    return max(
        (added for added, score in own.items() if score == highest),
        key=lambda added: pair_sum(scores, set(free) - set(added)),
    )
