"""The policies by name, and how each takes replicas and MIG devices GPU by GPU.

A policy is declared here and nowhere else: its name in `PolicyName`, what it does in `_policy`.
Whole GPUs go by their links whatever the policy, as with NVIDIA's plugin: see `linked`.
"""

from __future__ import annotations

from functools import cache
from heapq import heapify, heappop, heapreplace
from itertools import repeat
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, assert_never

from gpuplugin.core.preference.linked import Choice, choose_linked, from_table
from gpuplugin.core.sharing import is_replica_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gpuplugin.core.preference.index import PreferenceIndex

PolicyName: TypeAlias = Literal["distributed", "packed", "spread", "spread-strict"]

_MOST = 3 / 4
"""From this part of the devices on, most of them are available.

Both ways of marking 8000 ids take as long there: 0.7 ms.
"""


_FIELD_BITS = 20
"""More than a count of devices needs (`MAX_IDS`), and the number of a GPU."""
_GPU_MASK = (1 << _FIELD_BITS) - 1


def _turn(first: int, second: int = 0, third: int = 0) -> int:
    """A number that sorts GPUs as three counts would; the last bits are for the GPU's number."""
    return ((first << _FIELD_BITS | second) << _FIELD_BITS | third) << _FIELD_BITS


class _Policy(NamedTuple):
    """What counts in the turn of a GPU, the lowest of which is the next to be taken from.

    A device counts as `allocated` if it is not available for this choice, so unhealthy ones and
    those in `must_include` do, and as `included` if `must_include` has it; each one that the call
    takes adds `taken`.
    """

    allocated: int
    included: int
    taken: int
    distinct_gpus: bool = False
    """True if Allocate refuses two replicas of one GPU."""


@cache
def _policy(name: PolicyName) -> _Policy:
    match name:
        case "distributed":
            # Even out the node, not the request: one container may get two devices of an idle GPU.
            return _Policy(allocated=_turn(1), included=0, taken=_turn(1, 1))
        case "packed":
            # The allocated devices count, not the free ones: of two idle GPUs the smaller is not
            # preferred.
            return _Policy(allocated=-_turn(1), included=0, taken=-_turn(1))
        case "spread" | "spread-strict":
            # The GPU of which the request has the fewest; level ones as in `distributed`.
            return _Policy(_turn(0, 1), _turn(1), _turn(1, 1, 1), name == "spread-strict")
        case _:
            assert_never(name)


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
    return Choice(_take(policy, index, available, must_include, size), "plain")


def _take(
    policy: PolicyName,
    index: PreferenceIndex,
    available: Sequence[str],
    must_include: Sequence[str],
    size: int,
) -> tuple[str, ...]:
    chosen = list(dict.fromkeys(must_include))
    missing = size - len(chosen)
    if missing <= 0:
        return tuple(chosen)
    free, included = _marked(index, available, chosen)
    taken = take_free(policy, index, free, free_of_gpus(index, free), missing, included)
    return (*chosen, *(index.ids[rank] for rank in taken))


def take_free(
    policy: PolicyName,
    index: PreferenceIndex,
    free: bytearray,
    left: list[int],
    missing: int,
    included: Sequence[int] | None = None,
) -> list[int]:
    """Take devices one at a time, each from the GPU whose turn it is; returns their ranks.

    `free` is 1 for each device that may be taken, and `left` the number of these on each GPU; both
    may be used up. `included` are the devices of each GPU that the request has already.

    GPUs that are level go by their index, devices of a GPU by their replica number. The cost is
    a number for each GPU, and a heap operation for each device that is taken.
    """
    rules = _policy(policy)
    taken, start = rules.taken, index.gpu_start
    if not included and tuple(left) == index.gpu_size:  # nothing is allocated: the turns are level
        if taken > 0 and missing <= len(left):
            return list(start[:missing])  # no GPU has a second turn
        heap = list(range(len(left)))
    else:
        heap = _turns(rules, index, left, included or repeat(0))
    chosen: list[int] = []
    for _ in range(missing if heap else 0):
        turn = heap[0]
        gpu = turn & _GPU_MASK
        rank = free.find(1, start[gpu])
        free[rank] = 0
        chosen.append(rank)
        left[gpu] = count = left[gpu] - 1
        if count:
            heapreplace(heap, turn + taken)
        else:
            heappop(heap)
            if not heap:
                break
    return chosen


def _turns(
    rules: _Policy, index: PreferenceIndex, left: Sequence[int], included: Iterable[int]
) -> list[int]:
    """A heap of the turns of the GPUs that have free devices."""
    heap = [
        (size - count) * rules.allocated + held * rules.included + gpu
        for gpu, size, count, held in zip(
            range(len(left)), index.gpu_size, left, included, strict=False
        )
        if count
    ]
    heapify(heap)
    return heap


def free_of_gpus(index: PreferenceIndex, free: bytearray) -> list[int]:
    """How many devices of each GPU are free."""
    return list(map(free.count, repeat(1), index.gpu_start, index.gpu_start[1:]))


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
