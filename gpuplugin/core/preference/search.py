"""The search of `aligned` on larger nodes: branch and bound from a good first choice.

Nodes of up to 16 GPUs need none of it, their sets are in order in `sets`.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

from gpuplugin.core.preference.problem import Solution

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuplugin.core.preference.problem import Problem

MAX_EXACT_ITEMS = 16
"""Up to this many items a search may take as long as it needs: the whole tree has 26333 nodes.

The most that was seen are 4659, with links between two halves of the GPUs and none within.
"""

MAX_NODES = 2000
"""The most nodes to look at among more items than that."""

MAX_ITEMS = 64
"""Among more items than this there is no search."""

MAX_SWAPS = 32
"""How often a first choice may exchange an item for another one."""


def solve(problem: Problem, size: int) -> Solution:
    """Choose `size` of the items: at least one, and not all."""
    n = len(problem.values)
    if size == 1:
        return Solution(max(problem.values), "exact", n)
    if 2 * size > n:
        left_out = solve(problem.complement(), n - size)
        return replace(left_out, score=problem.everything + left_out.score)
    potentials = _potentials(problem, size)
    chosen = _greedy(problem, size, potentials)
    if n > MAX_ITEMS:
        return Solution(problem.score(chosen), "greedy", 0)
    first = problem.score(_improved(problem, chosen))
    search = _Search(problem, potentials, first, None if n <= MAX_EXACT_ITEMS else MAX_NODES)
    search.visit(0, list(enumerate(problem.values)), size)
    return Solution(search.best, "bounded" if search.gave_up else "exact", search.nodes)


def _potentials(problem: Problem, size: int) -> list[list[int]]:
    """For each item and count: half the sum of its best pulls, on that many other items.

    Of a pull each end gets a half, so a choice of k items scores at most the sum of their values
    and of their potentials for k - 1 others.
    """
    return [_potential(item, row, size) for item, row in enumerate(problem.pulls)]


def _potential(item: int, row: Sequence[int], size: int) -> list[int]:
    halves = [pull // 2 for other, pull in enumerate(row) if other != item]
    halves.sort(reverse=True)
    return list(accumulate(halves[: size - 1], initial=0))


def _greedy(problem: Problem, size: int, potentials: Sequence[Sequence[int]]) -> list[int]:
    """Start with the most promising item and add the one that gains most, again and again."""
    gains: Sequence[int] = problem.values
    left = set(range(len(gains)))
    chosen = [max(left, key=lambda item: gains[item] + potentials[item][-1])]
    left.remove(chosen[0])
    while len(chosen) < size:
        gains = _sums(gains, problem.pulls[chosen[-1]])
        best = max(left, key=gains.__getitem__)
        left.remove(best)
        chosen.append(best)
    return chosen


def _improved(problem: Problem, first: Sequence[int]) -> set[int]:
    """Exchange a chosen item for another one as long as that helps."""
    chosen = set(first)
    pulls = problem.pulls
    gains: Sequence[int] = problem.values
    for item in first:
        gains = _sums(gains, pulls[item])
    for _ in range(MAX_SWAPS):
        gain, out, into = max(
            (gains[into] - gains[out] - pulls[out][into], out, into)
            for into in range(len(gains))
            if into not in chosen
            for out in chosen
        )
        if gain <= 0:
            break
        chosen.remove(out)
        chosen.add(into)
        gains = _sums(
            gains, [more - less for more, less in zip(pulls[into], pulls[out], strict=True)]
        )
    return chosen


def _sums(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]


class _Search:
    """Branch and bound, depth first, the most promising item first.

    `best` is the best score so far; with a limit the search gives up after that many `nodes`.
    """

    def __init__(
        self,
        problem: Problem,
        potentials: Sequence[Sequence[int]],
        best: int,
        limit: int | None,
    ) -> None:
        self._pulls = problem.pulls
        self._potentials = potentials
        self._limit = limit
        self.best = best
        self.nodes = 0
        self.gave_up = False

    def visit(self, score: int, gains: Sequence[tuple[int, int]], missing: int) -> None:
        """Complete a choice with `missing` of some items, each given with what it would gain."""
        self.nodes += 1
        if missing == 1:
            self.best = max(self.best, score + max(gain for _, gain in gains))
            return
        ranked = sorted(
            ((gain + self._potentials[item][missing - 1], gain, item) for item, gain in gains),
            reverse=True,
        )
        promises = list(accumulate((promise for promise, _, _ in ranked), initial=0))
        for place in range(len(ranked) - missing + 1):
            if score + promises[place + missing] - promises[place] <= self.best:
                return
            if self.nodes == self._limit:
                self.gave_up = True
                return
            _, gain, item = ranked[place]
            row = self._pulls[item]
            rest = [(other, more + row[other]) for _, more, other in ranked[place + 1 :]]
            self.visit(score + gain, rest, missing - 1)
