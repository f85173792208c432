"""GetPreferredAllocation, without its wire format: which of the available ids to take.

Every policy is total: it never raises, whatever the kubelet sends, and its answer depends on
nothing but its arguments (ties go to the lower GPU index, then to the lower replica number).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpuplugin.core.inventory import Device, Resource


@dataclass(frozen=True, slots=True)
class PreferenceIndex:
    """What a policy needs to know of a resource, computed once per inventory.

    `rank` is the position of an id in the resource (by GPU index, then replica), `gpu_of` the
    position of its GPU among the GPUs, `gpu_size` the devices of each GPU.
    """

    rank: Mapping[str, int]
    gpu_of: Sequence[int]
    gpu_size: Sequence[int]

    @classmethod
    def of(cls, resource: Resource) -> PreferenceIndex:
        """Index the devices of a resource."""
        gpus: dict[str, int] = {}
        for device in resource.devices:
            gpus.setdefault(device.gpu_uuid, len(gpus))
        gpu_of = tuple(gpus[device.gpu_uuid] for device in resource.devices)
        sizes = [0] * len(gpus)
        for gpu in gpu_of:
            sizes[gpu] += 1
        return cls(MappingProxyType(_ranks(resource.devices)), gpu_of, tuple(sizes))


def _ranks(devices: Sequence[Device]) -> dict[str, int]:
    return {device.id: rank for rank, device in enumerate(devices)}


def distributed(
    index: PreferenceIndex, available: Sequence[str], must_include: Sequence[str], size: int
) -> tuple[str, ...]:
    """Spread a request: take from the GPU with the fewest allocated devices first.

    A device counts as allocated if it is not available for this choice, so unhealthy ones and
    those in `must_include` do. GPUs that are level go by what this call took from them, then by
    index. `must_include` comes first in the answer, always whole, even where `size` is smaller or
    an id is unknown. Unknown ids among `available` are passed over, repeats count once, and an
    answer is shorter than `size` when there is not enough.
    """
    chosen = list(dict.fromkeys(must_include))
    missing = size - len(chosen)
    if missing <= 0:
        return tuple(chosen)
    free = _free_by_gpu(index, available, frozenset(chosen))
    heap = [(index.gpu_size[gpu] - len(ids), 0, gpu) for gpu, ids in enumerate(free) if ids]
    heapq.heapify(heap)
    while heap and missing > 0:
        allocated, taken, gpu = heap[0]
        chosen.append(free[gpu].pop())
        missing -= 1
        if free[gpu]:
            heapq.heapreplace(heap, (allocated + 1, taken + 1, gpu))
        else:
            heapq.heappop(heap)
    return tuple(chosen)


def _free_by_gpu(
    index: PreferenceIndex, available: Sequence[str], taken: frozenset[str]
) -> list[list[str]]:
    """Free ids of each GPU, the lowest replica last so that `pop` takes it."""
    rank = index.rank
    known = {device_id for device_id in available if device_id in rank} - taken
    free: list[list[str]] = [[] for _ in index.gpu_size]
    for device_id in sorted(known, key=rank.__getitem__, reverse=True):
        free[index.gpu_of[rank[device_id]]].append(device_id)
    return free
