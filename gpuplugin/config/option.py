"""What an option is: its names, where its value goes, and how its text is read.

The options that there are stand in `options`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from gpuplugin.config.values import parse_bool, parse_xids

Value: TypeAlias = str | bool | list[str] | list[int] | list[int | str]


class Kind(Enum):
    """How the text of a flag or variable is read."""

    STRING = "string"
    BOOL = "bool"
    LIST = "list"
    DURATION = "duration"
    INTEGERS = "integers"
    XIDS = "xids"


@dataclass(frozen=True, slots=True)
class Option:
    """One option; the first of `flags` and `variables` is the one that documents name."""

    flags: tuple[str, ...]
    variables: tuple[str, ...]
    path: tuple[str, ...]
    kind: Kind
    help: str
    choices: tuple[str, ...] = ()

    def read(self, text: str) -> Value:
        """The value of a flag's or variable's text.

        Raises:
            ValueError: the text is not of the option's kind.
        """
        if self.kind is Kind.BOOL:
            return parse_bool(text)
        if self.kind is Kind.LIST:
            return _items(text)
        if self.kind is Kind.INTEGERS:
            return _integers(text)
        return text

    def read_variable(self, text: str) -> Value | None:
        """As `read`; a variable that is set but empty is "", false, or (None) as if not set.

        Xids that are none are left out, as NVIDIA's plugin does; `malformed` names them.
        """
        if self.kind is Kind.XIDS:
            return parse_xids(text)[0] or None
        if text:
            return self.read(text)
        if self.kind is Kind.BOOL:
            return False
        return "" if self.kind is Kind.STRING else None

    def malformed(self, text: str) -> list[str]:
        """What `read_variable` leaves out of a variable's text."""
        return parse_xids(text)[1] if self.kind is Kind.XIDS else []


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _integers(text: str) -> list[int]:
    items = _items(text)
    if not all(item.isascii() and item.isdecimal() for item in items):
        # IMEX channels are the only numbers, and channel 0 is the only one that is supported.
        raise ValueError(f"must be 0 or empty, found {text!r}")
    return [int(item) for item in items]
