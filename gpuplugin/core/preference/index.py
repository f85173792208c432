"""What the policies need to know of a resource, computed once per inventory.

Of up to `MAX_GPUS` whole GPUs that includes every set of them, by score, so that a request takes no
search. What makes one set better than another is described in `linked`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from operator import add
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from gpuplugin.core.sharing import is_replica_id
from hal import Link, LinkKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gpuplugin.core.inventory import Device, Resource

_PATH_SCORES: Final = MappingProxyType(
    {
        LinkKind.CROSS_CPU: 10,
        LinkKind.SAME_CPU: 20,
        LinkKind.HOST_BRIDGE: 30,
        LinkKind.MULTI_SWITCH: 40,
        LinkKind.SINGLE_SWITCH: 50,
        LinkKind.SAME_BOARD: 60,
    }
)
_NVLINK_SCORE = 100
_MAX_NVLINKS = 18

NO_LINKS: Final[Mapping[tuple[str, str], Link]] = MappingProxyType({})

MAX_GPUS = 16
"""There are 65536 sets of so many GPUs: 6 bytes each, and 15 to 35 ms to make them."""


@dataclass(frozen=True, slots=True)
class GpuSets:
    """All sets of GPUs; a set is a number that has a bit for each, the highest for GPU 0.

    So of two sets of a size the one with the lower GPUs is the greater number.
    """

    count: int
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
        return sum({1 << (self.count - 1 - gpu) for gpu in gpus})

    def best(self, fixed: int, free: int, missing: int) -> int:
        """`fixed` with the best set of `missing` GPUs of `free`, which has more, and none of fixed.

        Reads each set of a size once, but for a few: there are 12870 of 8 of 16 GPUs.
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


@dataclass(frozen=True, slots=True)
class PreferenceIndex:
    """The devices of a resource by rank and by GPU, and the links between its GPUs.

    The rank of a device is its place in the resource: by GPU index, then replica. GPUs are
    numbered in that order too, and the devices of one have consecutive ranks.
    """

    ids: Sequence[str]
    rank: Mapping[str, int]
    gpu_of: Sequence[int]
    """The number of the physical GPU of each device, by rank."""
    gpu_size: Sequence[int]
    gpu_start: Sequence[int]
    """The rank of the first device of each GPU, and one past the last rank of all."""
    whole_gpus: bool
    pair_scores: Sequence[Sequence[int]]
    """How well two GPUs are connected, by their numbers; symmetric, 0 for a GPU with itself."""
    sets: GpuSets | None
    """The sets of the GPUs; None if no GPU is allocated whole, or there are too many."""
    lone: Mapping[str, int]
    """The set of one GPU that each id stands for, by rank: of GPUs allocated whole, if `sets` are.

    A plain dictionary, which is read in every call: a view that cannot be written takes longer.
    """

    @classmethod
    def of(
        cls, resource: Resource, links: Mapping[tuple[str, str], Link] = NO_LINKS
    ) -> PreferenceIndex:
        """Index a resource; `links` is keyed by pairs of GPU UUIDs."""
        by_gpu: dict[str, list[Device]] = {}
        for device in resource.devices:
            by_gpu.setdefault(device.gpu_uuid, []).append(device)
        ids = tuple(device.id for devices in by_gpu.values() for device in devices)
        sizes = tuple(map(len, by_gpu.values()))
        whole_gpus = all(device.mig is None for device in resource.devices)
        pair_scores = _pair_scores(tuple(by_gpu), links)
        # Sets are needed only where GPUs are allocated whole.
        allocated_whole = whole_gpus and not all(map(is_replica_id, ids))
        has_table = allocated_whole and len(by_gpu) <= MAX_GPUS
        sets = GpuSets.of(pair_scores) if has_table else None
        return cls(
            ids=ids,
            rank=MappingProxyType({device_id: rank for rank, device_id in enumerate(ids)}),
            gpu_of=tuple(gpu for gpu, size in enumerate(sizes) for _ in range(size)),
            gpu_size=sizes,
            gpu_start=tuple(accumulate(sizes, initial=0)),
            whole_gpus=whole_gpus,
            pair_scores=pair_scores,
            sets=sets,
            lone=_lone(sets, tuple(by_gpu.values())) if sets else {},
        )


def _lone(sets: GpuSets, by_gpu: Sequence[Sequence[Device]]) -> dict[str, int]:
    """The sets of one GPU by the id of the GPU's only device, where that is no replica."""
    return {
        devices[0].id: sets.set_of((gpu,))
        for gpu, devices in enumerate(by_gpu)
        if len(devices) == 1 and not is_replica_id(devices[0].id)
    }


def _pair_scores(
    uuids: Sequence[str], links: Mapping[tuple[str, str], Link]
) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(0 if one == other else _pair_score(one, other, links) for other in uuids)
        for one in uuids
    )


def _pair_score(one: str, other: str, links: Mapping[tuple[str, str], Link]) -> int:
    """NVIDIA's score of a pair of GPUs.

    Where the two directions differ the lower score counts: a job waits for the slower one. A pair
    of which one direction is known has that score, one that is unknown is as far apart as can be.
    """
    known = [link for pair in ((one, other), (other, one)) if (link := links.get(pair)) is not None]
    return min(map(link_score, known), default=_PATH_SCORES[LinkKind.CROSS_CPU])


def link_score(link: Link) -> int:
    """NVIDIA's score of a link: the nearer on the PCIe tree the better, NVLinks above all."""
    return _PATH_SCORES[link.kind] + _NVLINK_SCORE * min(max(link.nvlinks, 0), _MAX_NVLINKS)


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
