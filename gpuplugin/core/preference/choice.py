"""What a policy is called and what it answers."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

Method: TypeAlias = Literal["exact", "bounded", "greedy", "plain"]
"""How an answer was found.

`plain`: a policy for replicas, which looks at no links. The others are about whole GPUs: `exact`
is proven to be the best, `bounded` is the best that a search found before it had to stop,
`greedy` was found without a search.
"""


class Choice(NamedTuple):
    """The preferred ids, those that must be included first, and how they were found."""

    ids: tuple[str, ...]
    method: Method
