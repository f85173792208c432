"""Every option that is a flag or an environment variable, made from the models in `settings`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal, get_args, get_origin

from gpuplugin.config.problems import keys
from gpuplugin.config.settings import SET_BY, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG_FILE_FLAG = "--config-file"
CONFIG_FILE_VARIABLE = "CONFIG_FILE"


class Kind(Enum):
    """What is given, as help shows it."""

    STRING = "VALUE"
    BOOL = "BOOL"
    LIST = "A,B"
    NUMBERS = "N"
    DURATION = "DURATION"
    XIDS = "N,M"


@dataclass(frozen=True, slots=True)
class Option:
    """One option; the first of `flags` and `variables` is the one that documents name."""

    flags: tuple[str, ...]
    variables: tuple[str, ...]
    path: tuple[str, ...]
    kind: Kind
    help: str
    choices: tuple[str, ...] = ()
    default: str = ""


def _options() -> Iterator[Option]:
    for path, field in keys(Settings):
        if isinstance(field.json_schema_extra, dict):
            names = str(field.json_schema_extra[SET_BY]).split()
            flags = tuple(name for name in names if name.startswith("--"))
            variables = tuple(name for name in names if not name.startswith("--"))
            prefix = "" if path[0] in ("flags", "imex") else "GPUPLUGIN_"
            usual = prefix + flags[0].removeprefix("--").replace("-", "_").upper()
            kind, choices = _kind(field.annotation)
            text = field.description or ""
            default = _written(field.default, kind)
            yield Option(flags, variables or (usual,), path, kind, text, choices, default)


def _written(value: object, kind: Kind) -> str:
    """A default as a flag spells it; empty if there is none."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if kind is Kind.BOOL:
        return str(value).lower()
    if kind is Kind.DURATION:
        return f"{value:g}s"
    return "" if value is None else str(value)


def _kind(annotation: object) -> tuple[Kind, tuple[str, ...]]:
    """What texts of a type give, and the words that it allows."""
    for simple, kind in ((bool, Kind.BOOL), (float, Kind.DURATION), (list[int | str], Kind.XIDS)):
        if annotation == simple:
            return kind, ()
    if get_origin(annotation) is list:
        return Kind.NUMBERS if int in get_args(get_args(annotation)[0]) else Kind.LIST, ()
    for one in (annotation, *get_args(annotation)):
        if get_origin(one) is Literal:
            return Kind.STRING, get_args(one)
    return Kind.STRING, ()


OPTIONS = tuple(_options())
"""All options, in the order in which documents list them."""
