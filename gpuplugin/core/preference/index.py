"""What the policies need to know of a resource, computed once per inventory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from gpuplugin.core.preference.sets import MAX_GPUS, GpuSets
from gpuplugin.core.replicas import is_replica_id
from hal import Link, LinkKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
"""Nothing is known of how the GPUs are connected."""


@dataclass(frozen=True, slots=True)
class PreferenceIndex:
    """The devices of a resource by rank and by GPU, and the links between its GPUs.

    The rank of a device is its place in the resource: by GPU index, then replica. GPUs are
    numbered in that order too, and the devices of one have consecutive ranks.
    """

    ids: Sequence[str]
    """The device ids by rank."""
    rank: Mapping[str, int]
    """The rank of each id."""
    gpu_of: Sequence[int]
    """The number of the physical GPU of each device, by rank."""
    gpu_size: Sequence[int]
    """How many devices each GPU has."""
    gpu_start: Sequence[int]
    """The rank of the first device of each GPU, and one past the last rank of all."""
    whole_gpus: bool
    """True if no device is a MIG device."""
    pair_scores: Sequence[Sequence[int]]
    """How well two GPUs are connected, by their numbers; symmetric, 0 for a GPU with itself."""
    sets: GpuSets | None
    """The sets of the GPUs; None where no GPU is given out whole, or there are too many of them."""
    lone: Mapping[str, int]
    """The set of one GPU that each id stands for, by rank: of GPUs given out whole, if `sets` are.

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
        # Nobody asks for sets of GPUs where none is given out whole.
        given_whole = whole_gpus and not all(map(is_replica_id, ids))
        sets = _sets(pair_scores) if given_whole else None
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


def _sets(pair_scores: Sequence[Sequence[int]]) -> GpuSets | None:
    return GpuSets.of(pair_scores) if len(pair_scores) <= MAX_GPUS else None


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
    of which one direction is known goes by that, one that is unknown is as far apart as can be.
    """
    known = [link for pair in ((one, other), (other, one)) if (link := links.get(pair)) is not None]
    return min(map(link_score, known), default=_PATH_SCORES[LinkKind.CROSS_CPU])


def link_score(link: Link) -> int:
    """NVIDIA's score of a link: the nearer on the PCIe tree the better, NVLinks above all."""
    return _PATH_SCORES[link.kind] + _NVLINK_SCORE * min(max(link.nvlinks, 0), _MAX_NVLINKS)
