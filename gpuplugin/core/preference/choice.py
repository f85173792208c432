"""What a policy is called and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Method: TypeAlias = Literal["exact", "bounded", "greedy", "plain"]
"""How an answer was found.

`plain`: a policy for replicas, which looks at no links. The others are about whole GPUs: `exact`
is proven to be the best, `bounded` is the best that a search found before it had to stop,
`greedy` was found without a search.
"""


@dataclass(frozen=True, slots=True)
class Choice:
    """The preferred ids, those that must be included first, and how they were found."""

    ids: tuple[str, ...]
    method: Method
