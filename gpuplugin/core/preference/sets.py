"""Every set of the GPUs of a node of up to 16: its score, and the best of those that may be taken.

Made once per inventory, so that a request takes no search. What makes one set better than another
is said in `aligned`; larger nodes are for `search`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass
from operator import add
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_GPUS = 16
"""There are 65536 sets of so many GPUs: 6 bytes each, and 15 to 35 ms to make them."""


@dataclass(frozen=True, slots=True)
class GpuSets:
    """All sets of GPUs; a set is a number that has a bit for each, the highest for GPU 0.

    So of two sets of a size the one with the lower GPUs is the greater number.
    """

    count: int
    """How many GPUs there are."""
    scores: Sequence[int]
    """The score of each set: the sum of the scores of its pairs."""
    of_size: Sequence[Sequence[int]]
    """The sets of each size, the best of a node with all GPUs free first."""

    @classmethod
    def of(cls, pair_scores: Sequence[Sequence[int]]) -> GpuSets:
        """The sets of at most `MAX_GPUS` GPUs, from the scores of their pairs.

        Raises OverflowError for more GPUs, and for scores whose sums are no 32 bits without a sign.
        """
        scores = _scores(pair_scores)
        of_size = tuple(_ranked(sets, scores) for sets in _by_size(len(pair_scores)))
        return cls(len(pair_scores), scores, of_size)

    def set_of(self, gpus: Iterable[int]) -> int:
        """The set of some GPUs, each given by its number."""
        return sum({1 << (self.count - 1 - gpu) for gpu in gpus})

    def best(self, fixed: int, free: int, missing: int) -> int:
        """`fixed` with the best set of `missing` GPUs of `free`, which has more, and none of fixed.

        Looks at each set of a size once, but for a few: there are 12870 of 8 of 16 GPUs.
        """
        sets = self.of_size[fixed.bit_count() + missing]
        # Of the GPUs that are not free a choice has the fixed ones and no other.
        rest = (1 << self.count) - 1 - free
        if not rest:
            return sets[0]
        place = next(place for place, one in enumerate(sets) if one & rest == fixed)
        end = _end(sets, self.scores, place)
        equals = [one for one in sets[place:end] if one & rest == fixed]
        left = [self.scores[free & ~one] for one in equals]
        return max(zip(left, equals, strict=True))[1]


def _scores(pair_scores: Sequence[Sequence[int]]) -> array[int]:
    """The score of each set, one GPU after the other, the last and lowest bit first."""
    count = len(pair_scores)
    scores = array("I", [0])
    for gpu in reversed(range(count)):
        with_gpu = [0]
        for other in reversed(range(gpu + 1, count)):
            score = pair_scores[gpu][other]
            with_gpu += [total + score for total in with_gpu]
        scores += array("I", map(add, scores, with_gpu))
    return scores


def _by_size(count: int) -> list[array[int]]:
    """The sets by how many GPUs they have, each array with the lowest GPUs first."""
    of_size = [array("H") for _ in range(count + 1)]
    for one in reversed(range(1 << count)):
        of_size[one.bit_count()].append(one)
    return of_size


def _ranked(sets: Sequence[int], scores: Sequence[int]) -> array[int]:
    """Sets of a size by their score, the highest first.

    Only the first one counts where all GPUs are free, so only its equals go by the score that is
    left as well. Sorting is stable: what is level then stays with the lowest GPUs first.
    """
    ranked = sorted(sets, key=scores.__getitem__, reverse=True)
    equal = _end(ranked, scores, 0)
    # The set without the GPUs of another one is as far from the end as that is from the start.
    first = sorted(ranked[:equal], key=lambda one: scores[-1 - one], reverse=True)
    return array("H", first + ranked[equal:])


def _end(ranked: Sequence[int], scores: Sequence[int], start: int) -> int:
    """The place after the last of the sets that score as the one at `start`."""
    return bisect_right(ranked, -scores[ranked[start]], lo=start, key=lambda one: -scores[one])
