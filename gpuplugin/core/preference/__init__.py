"""GetPreferredAllocation, without its wire format: which of the available ids to prefer.

`prefer` is total: it never raises, whatever the kubelet sends, and its choice depends on nothing
but its arguments, not even on the order of the available ids. In every choice `must_include`
comes first and whole, even where `size` is smaller or an id is unknown. Unknown ids among the
available are passed over, repeats count once, and a choice is shorter than `size` when there is
not enough.
"""

from gpuplugin.core.preference.index import PreferenceIndex
from gpuplugin.core.preference.linked import Choice, ChoiceMethod, best_of
from gpuplugin.core.preference.policies import (
    PolicyName,
    free_of_gpus,
    needs_distinct_gpus,
    prefer,
    take_free,
)

__all__ = [
    "Choice",
    "ChoiceMethod",
    "PolicyName",
    "PreferenceIndex",
    "best_of",
    "free_of_gpus",
    "needs_distinct_gpus",
    "prefer",
    "take_free",
]
