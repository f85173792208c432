"""The policy `distributed`: even out the node, the GPU with the fewest allocated devices first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.core.preference.free import take

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuplugin.core.preference.free import Turn
    from gpuplugin.core.preference.index import PreferenceIndex


def distributed(
    index: PreferenceIndex, available: Sequence[str], must_include: Sequence[str], size: int
) -> tuple[str, ...]:
    """Take from the GPU with the fewest allocated devices first.

    GPUs that are level go by what this call took from them, then by index. It is the node that is
    evened out, not the request: two devices of an idle GPU may go to one container.
    """
    return take(index, available, must_include, size, _turn)


def _turn(allocated: int, _included: int, taken: int) -> Turn:
    return allocated, taken
