"""Objects of JSON that nobody has checked: what is not there, or of another kind, is empty."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

JsonObject: TypeAlias = dict[str, object]


def part(body: Mapping[str, object], name: str) -> JsonObject:
    """An object within an object."""
    value = body.get(name)
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[JsonObject]:
    """The objects of a list, without what else is in it."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
