"""The policies by name, and how each takes replicas and MIG devices GPU by GPU.

A policy is declared here and nowhere else: its name in `PolicyName`, what it does in `_policy`.
Whole GPUs go by their links whatever the policy, as with NVIDIA's plugin: see `linked`.
"""

from __future__ import annotations

import heapq
from functools import cache
from itertools import repeat
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, assert_never

from gpuplugin.core.preference.linked import Choice, choose_linked, from_table
from gpuplugin.core.sharing import is_replica_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpuplugin.core.preference.index import PreferenceIndex

PolicyName: TypeAlias = Literal["distributed", "packed", "spread", "spread-strict"]

Turn: TypeAlias = tuple[int, ...]
"""Sorts the GPUs: the lowest is the next to be taken from."""

_MOST = 3 / 4
"""From this part of the devices on, most of them are available.

Both ways of marking 8000 ids take as long there: 0.7 ms.
"""


class _Policy(NamedTuple):
    """`turn` is the turn of a GPU from its allocated devices, those that `must_include` has of it,
    and those that this call took from it.

    A device counts as allocated if it is not available for this choice, so unhealthy ones and
    those in `must_include` do, and what the call takes does.
    """

    turn: Callable[[int, int, int], Turn]
    distinct_gpus: bool = False
    """True if Allocate refuses two replicas of one GPU."""


@cache
def _policy(name: PolicyName) -> _Policy:
    match name:
        case "distributed":
            # Even out the node, not the request: one container may get two devices of an idle GPU.
            return _Policy(lambda allocated, _included, taken: (allocated, taken))
        case "packed":
            # The allocated devices count, not the free ones: of two idle GPUs the smaller is not
            # preferred.
            return _Policy(lambda allocated, _included, _taken: (-allocated,))
        case "spread":
            return _Policy(_spread)
        case "spread-strict":
            return _Policy(_spread, distinct_gpus=True)
        case _:
            assert_never(name)


def _spread(allocated: int, included: int, taken: int) -> Turn:
    """The GPU of which the request has the fewest devices; level ones as in `distributed`."""
    return included + taken, allocated, taken


def needs_distinct_gpus(policy: PolicyName) -> bool:
    return _policy(policy).distinct_gpus


def prefer(
    policy: PolicyName,
    index: PreferenceIndex,
    available: Sequence[str],
    must_include: Sequence[str],
    size: int,
) -> Choice:
    choice = from_table(index, available, size) if not must_include else None
    if choice is not None:
        return choice
    if index.whole_gpus and not any(map(is_replica_id, available)):
        return choose_linked(index, available, must_include, size)
    return Choice(_take(_policy(policy).turn, index, available, must_include, size), "plain")


def _take(
    turn_of: Callable[[int, int, int], Turn],
    index: PreferenceIndex,
    available: Sequence[str],
    must_include: Sequence[str],
    size: int,
) -> tuple[str, ...]:
    """Fill a request one device at a time, each from the GPU whose turn it is.

    GPUs that are level go by their index, devices of a GPU by their replica number. The cost is
    linear in the number of available ids, and a heap operation for each device that is taken.
    """
    chosen = list(dict.fromkeys(must_include))
    missing = size - len(chosen)
    if missing <= 0:
        return tuple(chosen)
    free, included = _marked(index, available, chosen)
    start = index.gpu_start
    left = [free.count(1, start[gpu], start[gpu + 1]) for gpu in range(len(index.gpu_size))]
    used = [index.gpu_size[gpu] - count for gpu, count in enumerate(left)]
    taken = [0] * len(left)
    heap = [(turn_of(used[gpu], included[gpu], 0), gpu) for gpu, count in enumerate(left) if count]
    heapq.heapify(heap)
    while heap and missing > 0:
        gpu = heap[0][1]
        rank = free.find(1, start[gpu])
        free[rank] = 0
        chosen.append(index.ids[rank])
        missing -= 1
        taken[gpu] += 1
        if taken[gpu] < left[gpu]:
            turn = turn_of(used[gpu] + taken[gpu], included[gpu], taken[gpu])
            heapq.heapreplace(heap, (turn, gpu))
        else:
            heapq.heappop(heap)
    return tuple(chosen)


def _marked(
    index: PreferenceIndex, available: Sequence[str], chosen: Sequence[str]
) -> tuple[bytearray, list[int]]:
    """A byte per device that is 1 where it is free, and how many devices of each GPU are chosen.

    Bytes, because counting and finding in them is much faster than sorting thousands of ids.
    """
    free = _available(index, available)
    included = [0] * len(index.gpu_size)
    for rank in map(index.rank.get, chosen):
        if rank is not None:
            free[rank] = 0
            included[index.gpu_of[rank]] += 1
    return free, included


def _available(index: PreferenceIndex, available: Sequence[str]) -> bytearray:
    """A byte per device that is 1 where it is available; unknown ids and repeats do not matter."""
    count = len(index.ids)
    if len(available) < _MOST * count:
        # What is unknown marks a place past the last: that is faster than to check each.
        marks = [0] * (count + 1)
        for rank in map(index.rank.get, available, repeat(count)):
            marks[rank] = 1
        return bytearray(marks[:count])
    # Of a node that is nearly idle it is faster to mark what is not available.
    free = bytearray(b"\x01") * count
    for device_id in index.rank.keys() - available:
        free[index.rank[device_id]] = 0
    return free
