"""What all parts of the configuration have in common: strictness, spelling, small value types."""

from __future__ import annotations

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

from gpuplugin.config.values import full_resource_name, parse_duration_s


class Section(BaseModel):
    """A part of the configuration: camelCase in the file, strict types, immutable."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="ignore",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
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


Integer = Annotated[int, BeforeValidator(_integral)]


def _written(seconds: float) -> str:
    return "infinite" if seconds == float("inf") else f"{seconds:g}s"


Seconds = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(gt=0, allow_inf_nan=False),
    PlainSerializer(_written, when_used="json"),
]
SecondsOrInfinite = Annotated[
    float,
    BeforeValidator(_seconds_or_infinite),
    Field(gt=0),
    PlainSerializer(_written, when_used="json"),
]
ResourceName = Annotated[str, AfterValidator(full_resource_name)]
Strings = Annotated[list[str], BeforeValidator(_listed)]
