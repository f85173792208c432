"""The policy `spread`: the devices of one request on distinct GPUs as far as there are any."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.core.preference.free import take

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuplugin.core.preference.free import Turn
    from gpuplugin.core.preference.index import PreferenceIndex


def spread(
    index: PreferenceIndex, available: Sequence[str], must_include: Sequence[str], size: int
) -> tuple[str, ...]:
    """Take from the GPU of which the request has the fewest devices, `must_include` with them.

    GPUs that are level go as in `distributed`. When the request has a device of every GPU it goes
    round again.
    """
    return take(index, available, must_include, size, _turn)


def _turn(allocated: int, included: int, taken: int) -> Turn:
    return included + taken, allocated, taken


def distinct_gpus(index: PreferenceIndex, device_ids: Sequence[str]) -> bool:
    """True if no two of the devices are of one physical GPU.

    An id that is given twice is one device; unknown ids are passed over.
    """
    ranks = {rank for rank in map(index.rank.get, device_ids) if rank is not None}
    return len({index.gpu_of[rank] for rank in ranks}) == len(ranks)
