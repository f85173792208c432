"""What all parts of the configuration have in common: strictness, spelling, small value types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
)
from pydantic.alias_generators import to_camel

from gpuplugin.config.values import (
    XID_WORDS,
    full_resource_name,
    listen_address,
    parse_duration_s,
    parse_xids,
)

_SHORTEST_PERIOD_S = 0.01


class Section(BaseModel):
    """A part of the configuration: camelCase in the file, strict types, immutable."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="ignore",
        frozen=True,
        strict=True,
    )


def _integral(value: object) -> object:
    """YAML's 2.0 counts as 2, as it does for NVIDIA's plugin."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _seconds(value: object) -> object:
    return parse_duration_s(value) if isinstance(value, str) else value


def _seconds_or_infinite(value: object) -> object:
    return float("inf") if value == "infinite" else _seconds(value)


def _listed(value: object) -> object:
    """One string counts as a list of one."""
    return [value] if isinstance(value, str) else value


def _device_terms(value: object) -> object:
    """Indices may be written as numbers; one term counts as a list of one."""
    if isinstance(value, list):
        return [_index_text(item) for item in value]
    return _listed(_index_text(value))


def _index_text(value: object) -> object:
    number = _integral(value)
    is_index = isinstance(number, int) and not isinstance(number, bool) and number >= 0
    return str(number) if is_index else value


def _folder(value: object) -> object:
    """An empty text would be the working directory, which nobody means by it."""
    if value == "":
        raise ValueError("must not be empty")
    return value


def _at_least_10ms(seconds: float) -> float:
    if seconds < _SHORTEST_PERIOD_S:
        raise ValueError(f"must be at least 10ms, found {_written(seconds)}")
    return seconds


def _xid_terms(value: object) -> object:
    """A number, a word, a comma list or a list of these; all of it must be right."""
    if isinstance(value, list):
        return [term for item in value for term in _xids(item)]
    return _xids(value)


def _xids(item: object) -> list[int | str]:
    is_text = isinstance(item, int | float | str) and not isinstance(item, bool)
    good, bad = parse_xids(str(_integral(item))) if is_text else ([], [""])
    if bad or not good:
        words = ", ".join(sorted(XID_WORDS))
        raise ValueError(f"must be Xid numbers or one of {words}, found {item!r}")
    return good


Integer = Annotated[int, BeforeValidator(_integral)]


def _written(seconds: float) -> str:
    return "infinite" if seconds == float("inf") else f"{seconds:g}s"


Seconds = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(gt=0, allow_inf_nan=False),
    PlainSerializer(_written, when_used="json"),
]
Period = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(allow_inf_nan=False),
    AfterValidator(_at_least_10ms),
    PlainSerializer(_written, when_used="json"),
]
"""How often something is done, or how long it is waited for: not so short that it is all load."""
SecondsOrInfinite = Annotated[
    float,
    BeforeValidator(_seconds_or_infinite),
    Field(gt=0),
    PlainSerializer(_written, when_used="json"),
]
ResourceName = Annotated[str, AfterValidator(full_resource_name)]
Folder = Annotated[
    Path, Field(strict=False), BeforeValidator(_folder), AfterValidator(Path.absolute)
]
"""A folder by its absolute path."""
DeviceTerms = Annotated[list[str], BeforeValidator(_device_terms)]
XidTerms = Annotated[list[int | str], BeforeValidator(_xid_terms)]
"""Xids by number; `all` or `xids` for all of them."""
ListenAddress = Annotated[str, AfterValidator(listen_address)]
Strings = Annotated[list[str], BeforeValidator(_listed)]
