"""The choice of whole GPUs: take those that are linked best, and leave what is linked well.

The score of a set of GPUs is the sum of the scores of its pairs. The best set is the one with

1. the highest score, together with what must be included;
2. of those, the one that leaves the highest score among the GPUs that stay available, so that a
   request does not break an island which a later one could have whole;
3. of those, the one with the lowest ranks.

NVIDIA's plugin partitions all available GPUs into groups of the requested size, takes the
partition with the best sum, and of it the best group. That is (2) before (1), at a cost that
explodes with the number of GPUs; here a container never gets less than the best set there is.

On a node of up to 16 GPUs the sets are ranked in advance (`index.GpuSets`) and the choice is exact.
On a larger one it is greedy: one GPU is added after the other, in a few milliseconds.
"""

from __future__ import annotations

from functools import reduce
from itertools import combinations, compress
from operator import add, or_
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuplugin.core.preference.index import GpuSets, PreferenceIndex

_STARTS = 4
"""Sets that a greedy choice compares. On random links between ten free GPUs, which are harder than
real ones, one alone has 0.97 of the best score on average and 0.71 at worst, four 0.99 and 0.77."""

ChoiceMethod: TypeAlias = Literal["exact", "greedy", "plain"]
"""How a choice was found.

`plain`: a policy for replicas, which uses no links. The others are about whole GPUs: `exact`
is the best set there is, `greedy` is a good one.
"""


class Choice(NamedTuple):
    """The preferred ids, those that must be included first, and how they were found."""

    ids: tuple[str, ...]
    method: ChoiceMethod


def from_table(index: PreferenceIndex, available: Sequence[str], size: int) -> Choice | None:
    """What `choose_linked` takes where nothing must be included; None if an id is no whole GPU.

    That is nearly every call, and whatever it does not touch need not be fetched into the
    processor's caches: after a pause that is most of what a call costs.
    """
    lone, sets = index.lone, index.sets
    if sets is None:
        return None
    try:
        free = reduce(or_, map(lone.__getitem__, available), 0)
    except KeyError:
        return None
    if size <= 0:
        return Choice((), "exact")
    best = best_of(sets, free, size)
    return Choice(tuple(compress(lone, map(best.__and__, lone.values()))), "exact")


def best_of(sets: GpuSets, free: int, size: int) -> int:
    """The best set of so many of the `free` GPUs, all of them if there are not more."""
    return free if size >= free.bit_count() else sets.best(0, free, size)


def choose_linked(
    index: PreferenceIndex, available: Sequence[str], must_include: Sequence[str], size: int
) -> Choice:
    """Take the best-linked set of GPUs that contains `must_include`.

    One GPU alone has no score, so a request for one gets that whose links the others miss least.
    """
    chosen = list(dict.fromkeys(must_include))
    missing = size - len(chosen)
    if missing <= 0:
        return Choice(tuple(chosen), "exact")
    fixed = [rank for rank in map(index.rank.get, chosen) if rank is not None]
    usable = {rank for rank in map(index.rank.get, available) if rank is not None}
    free = sorted(usable.difference(fixed))
    if missing >= len(free):
        chosen.extend(index.ids[rank] for rank in free)
        return Choice(tuple(chosen), "exact")
    ranks, method = _best(index, free, fixed, missing)
    chosen.extend(index.ids[rank] for rank in ranks)
    return Choice(tuple(chosen), method)


def _best(
    index: PreferenceIndex, free: Sequence[int], fixed: Sequence[int], missing: int
) -> tuple[list[int], ChoiceMethod]:
    """The best `missing` of the free ranks, lowest first, and how they were found."""
    sets = index.sets
    gpus = {index.gpu_of[rank] for rank in (*free, *fixed)}
    if sets is None or len(gpus) < len(free) + len(fixed):
        return _greedy(index, free, fixed, missing), "greedy"
    best = sets.best(
        sets.set_of(index.gpu_of[rank] for rank in fixed),
        sets.set_of(index.gpu_of[rank] for rank in free),
        missing,
    )
    return [rank for rank in free if best & sets.set_of((index.gpu_of[rank],))], "exact"


def _greedy(
    index: PreferenceIndex, free: Sequence[int], fixed: Sequence[int], missing: int
) -> list[int]:
    """The best of a few sets: the lowest ranks, and those that grow from promising GPUs.

    The cost is a row of scores for each GPU, and for each that is added.
    """
    gpus = [index.gpu_of[rank] for rank in free]
    fixed_gpus = [index.gpu_of[rank] for rank in fixed]
    rows = [[index.pair_scores[gpu][other] for other in gpus] for gpu in gpus]
    gains = [sum(index.pair_scores[gpu][other] for other in fixed_gpus) for gpu in gpus]
    missed = list(map(add, map(sum, rows), gains))
    # What a GPU could gain with the best of the others; a pair counts for both of its ends.
    promises = [
        2 * gain + sum(sorted(row, reverse=True)[: missing - 1])
        for gain, row in zip(gains, rows, strict=True)
    ]
    starts = sorted(range(len(free)), key=lambda item: (-promises[item], missed[item]))
    candidates = [_grown(start, rows, gains, missed, missing) for start in starts[:_STARTS]]

    def score(items: Sequence[int]) -> int:
        pairs = sum(rows[one][other] for one, other in combinations(items, 2))
        return pairs + sum(gains[item] for item in items)

    best = max((*candidates, range(missing)), key=score)
    return [free[item] for item in best]


def _grown(
    start: int,
    rows: Sequence[Sequence[int]],
    gains: Sequence[int],
    missed: Sequence[int],
    missing: int,
) -> list[int]:
    """Begin with an item and add the one that gains most, again and again; lowest items first.

    Level ones go by the scores that the others miss, then by rank.
    """
    left = dict.fromkeys(range(len(rows)))
    taken = [start]
    while len(taken) < missing:
        del left[taken[-1]]
        gains = list(map(add, gains, rows[taken[-1]]))
        taken.append(max(left, key=lambda item: (gains[item], -missed[item])))
    return sorted(taken)
