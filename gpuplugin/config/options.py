"""Every option that is a flag or an environment variable, made from the models in `settings`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args, get_origin

from pydantic import BaseModel

from gpuplugin.config.settings import SET_BY, Settings
from gpuplugin.config.values import parse_bool, parse_xids

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic.fields import FieldInfo

Value: TypeAlias = str | bool | list[str] | list[int] | list[int | str]

CONFIG_FILE_FLAG = "--config-file"
CONFIG_FILE_VARIABLE = "CONFIG_FILE"


class Kind(Enum):
    """How the text of a flag or variable is read."""

    STRING = "string"
    BOOL = "bool"
    LIST = "list"
    DURATION = "duration"
    INTEGERS = "integers"
    XIDS = "xids"


_EMPTY: Mapping[Kind, Value] = {Kind.STRING: "", Kind.BOOL: False}
"""What a variable that is set but empty means, for kinds for which it means something."""


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
        if self.kind not in (Kind.LIST, Kind.INTEGERS):
            return text
        items = [item.strip() for item in text.split(",") if item.strip()]
        if self.kind is Kind.LIST:
            return items
        if not all(item.isascii() and item.isdecimal() for item in items):
            # IMEX channels are the only numbers, and channel 0 is the only one that is supported.
            raise ValueError(f"must be 0 or empty, found {text!r}")
        return [int(item) for item in items]

    def read_variable(self, text: str) -> Value | None:
        """As `read`; a variable that is set but empty is "", false, or (None) as if not set.

        Xids that are none are left out, as NVIDIA's plugin does; `malformed` names them.
        """
        if self.kind is Kind.XIDS:
            return parse_xids(text)[0] or None
        return self.read(text) if text else _EMPTY.get(self.kind)

    def malformed(self, text: str) -> list[str]:
        """What `read_variable` leaves out of a variable's text."""
        return parse_xids(text)[1] if self.kind is Kind.XIDS else []


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a section, or of the entries of a list of them."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def is_list(field: FieldInfo) -> bool:
    """True for a list, of sections or of values."""
    return get_origin(field.annotation) is list


def _options(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[Option]:
    for field in model.model_fields.values():
        here = (*path, field.alias or "")
        inner, extra = section_of(field), field.json_schema_extra
        if inner is not None:
            yield from _options(inner, here)
        elif isinstance(extra, dict):
            kind, choices = _kind(field.annotation)
            names = str(extra[SET_BY]).split()
            flags = tuple(name for name in names if name.startswith("--"))
            variables = tuple(name for name in names if not name.startswith("--"))
            yield Option(flags, variables, here, kind, field.description or "", choices)


def _kind(annotation: object) -> tuple[Kind, tuple[str, ...]]:
    """How texts of a type are read, and the words that it allows."""
    for simple, kind in ((bool, Kind.BOOL), (float, Kind.DURATION), (list[int | str], Kind.XIDS)):
        if annotation == simple:
            return kind, ()
    if get_origin(annotation) is list:
        return Kind.INTEGERS if int in get_args(get_args(annotation)[0]) else Kind.LIST, ()
    for one in (annotation, *get_args(annotation)):
        if get_origin(one) is Literal:
            return Kind.STRING, get_args(one)
    return Kind.STRING, ()


OPTIONS = tuple(_options(Settings, ()))
"""All options, in the order in which documents list them."""
