"""What `aligned` searches: choose so many items that their values and their pairs sum up best.

A choice scores the sum of its `values`, plus `pulls[i][j]` for every pair of its items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from gpuplugin.core.preference.choice import Method


@dataclass(frozen=True, slots=True)
class Problem:
    """Items by number; `pulls` is symmetric, even, and 0 on its diagonal.

    No two choices of a size may have the same score, so that whatever finds the best one finds
    the same one.
    """

    values: Sequence[int]
    pulls: Sequence[Sequence[int]]

    def score(self, chosen: Collection[int]) -> int:
        """The score of a choice."""
        both_ways = sum(self.pulls[one][other] for one in chosen for other in chosen)
        return sum(self.values[item] for item in chosen) + both_ways // 2

    @property
    def everything(self) -> int:
        """The score of all items."""
        return self.score(range(len(self.values)))

    def complement(self) -> Problem:
        """The problem of what to leave out: its score plus `everything` is that of the rest."""
        values = [-value - sum(row) for value, row in zip(self.values, self.pulls, strict=True)]
        return Problem(values, self.pulls)


@dataclass(frozen=True, slots=True)
class Solution:
    """The score of the best choice, how it was found, and how many nodes that took."""

    score: int
    method: Method
    nodes: int
