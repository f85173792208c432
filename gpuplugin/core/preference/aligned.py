"""The policy for whole GPUs: take those that are linked best, and leave what is linked well.

The score of a set of GPUs is the sum of the scores of its pairs. The best set is the one with

1. the highest score, together with what must be included;
2. of those, the one that leaves the highest score among the GPUs that stay available, so that a
   request does not break an island which a later one could have whole;
3. of those, the one with the lowest ranks.

NVIDIA's plugin partitions all available GPUs into groups of the requested size, takes the
partition with the best sum, and of it the best group. That is (2) before (1), at a cost that
explodes with the number of GPUs; here a container never gets less than the best set there is.

On a node of up to 16 GPUs the sets are ranked in advance (`sets`), on a larger one they are
searched (`search`).
"""

from __future__ import annotations

from functools import reduce
from itertools import compress
from operator import or_
from typing import TYPE_CHECKING

from gpuplugin.core.preference.choice import Choice
from gpuplugin.core.preference.problem import Problem
from gpuplugin.core.preference.search import solve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuplugin.core.preference.choice import Method
    from gpuplugin.core.preference.index import PreferenceIndex


def from_table(index: PreferenceIndex, available: Sequence[str], size: int) -> Choice | None:
    """What `aligned` takes where nothing must be included; None if an id is of no whole GPU.

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
    best = free if size >= free.bit_count() else sets.best(0, free, size)
    return Choice(tuple(compress(lone, map(best.__and__, lone.values()))), "exact")


def aligned(
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
) -> tuple[list[int], Method]:
    """The best `missing` of the free ranks, lowest first, and how they were found."""
    sets = index.sets
    gpus = {index.gpu_of[rank] for rank in (*free, *fixed)}
    if sets is None or len(gpus) < len(free) + len(fixed):
        solution = solve(as_problem(index, free, fixed), missing)
        return _decoded(solution.score, free), solution.method
    best = sets.best(
        sets.set_of(index.gpu_of[rank] for rank in fixed),
        sets.set_of(index.gpu_of[rank] for rank in free),
        missing,
    )
    return [rank for rank in free if best & sets.set_of((index.gpu_of[rank],))], "exact"


def as_problem(index: PreferenceIndex, free: Sequence[int], fixed: Sequence[int]) -> Problem:
    """Put the three aims into one number, each out of reach of the next; devices are given by rank.

    The score that is left is a constant, plus that of the chosen, minus all the scores that each
    chosen GPU has with the others: among equally good sets a sum of values, one for each GPU. The
    ranks are a bit for each GPU, the highest for the lowest rank; so the lowest bits of a score
    tell which GPUs were chosen, and no two sets have the same score.
    """
    n = len(free)
    gpus = [index.gpu_of[rank] for rank in free]
    fixed_gpus = [index.gpu_of[rank] for rank in fixed]
    rows = [index.pair_scores[gpu] for gpu in gpus]
    pairs = [[row[gpu] for gpu in gpus] for row in rows]
    with_fixed = [sum(row[gpu] for gpu in fixed_gpus) for row in rows]
    missed = [sum(row) + score for row, score in zip(pairs, with_fixed, strict=True)]
    scale = (1 + sum(missed)) << n
    values = [
        score * scale - (missed[item] << n) + (1 << (n - 1 - item))
        for item, score in enumerate(with_fixed)
    ]
    return Problem(values, [[score * scale for score in row] for row in pairs])


def _decoded(score: int, free: Sequence[int]) -> list[int]:
    """The ranks of the chosen, lowest first, from the bits that `as_problem` put into a score."""
    n = len(free)
    return [rank for item, rank in enumerate(free) if score >> (n - 1 - item) & 1]
