"""GetPreferredAllocation, without its wire format: which of the available ids to take.

`prefer` is total: it never raises, whatever the kubelet sends, and its answer depends on nothing
but its arguments, not even on the order of the available ids. In every answer `must_include`
comes first and whole, even where `size` is smaller or an id is unknown. Unknown ids among the
available are passed over, repeats count once, and an answer is shorter than `size` when there is
not enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.core.preference.aligned import aligned, from_table
from gpuplugin.core.preference.choice import Choice, Method
from gpuplugin.core.preference.distributed import distributed
from gpuplugin.core.preference.index import PreferenceIndex
from gpuplugin.core.preference.packed import packed
from gpuplugin.core.preference.spread import distinct_gpus, spread
from gpuplugin.core.replicas import is_replica_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuplugin.core.words import PolicyName

__all__ = [
    "Choice",
    "Method",
    "PreferenceIndex",
    "aligned",
    "distinct_gpus",
    "distributed",
    "from_table",
    "packed",
    "prefer",
    "spread",
]


def prefer(
    policy: PolicyName,
    index: PreferenceIndex,
    available: Sequence[str],
    must_include: Sequence[str],
    size: int,
) -> Choice:
    """The ids to take for one container.

    Whole GPUs go by their links whatever the policy, as with NVIDIA's plugin: the policies are
    about replicas. `spread-strict` prefers as `spread` does; what is strict is Allocate.
    """
    choice = from_table(index, available, size) if not must_include else None
    if choice is not None:
        return choice
    if index.whole_gpus and not any(map(is_replica_id, available)):
        return aligned(index, available, must_include, size)
    match policy:
        case "packed":
            ids = packed(index, available, must_include, size)
        case "spread" | "spread-strict":
            ids = spread(index, available, must_include, size)
        case _:
            ids = distributed(index, available, must_include, size)
    return Choice(ids, "plain")
