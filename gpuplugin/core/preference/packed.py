"""The policy `packed`: fill one GPU before the next, so that others stay free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.core.preference.free import take

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuplugin.core.preference.free import Turn
    from gpuplugin.core.preference.index import PreferenceIndex


def packed(
    index: PreferenceIndex, available: Sequence[str], must_include: Sequence[str], size: int
) -> tuple[str, ...]:
    """Take from the GPU with the most allocated devices first.

    GPUs that are level go by index; they were level from the start, so this call took nothing from
    either. It is the allocated devices that count, not the free ones: of two idle GPUs the smaller
    is not preferred.
    """
    return take(index, available, must_include, size, _turn)


def _turn(allocated: int, _included: int, _taken: int) -> Turn:
    return (-allocated,)
