"""Types of keys that allow more than pydantic's own: `2.0` as 2, durations, Xids, devices.

How the words within a text are spelled is in `values`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)

from gpuplugin.config.values import (
    XID_WORDS,
    device_reference,
    full_resource_name,
    listen_address,
    parse_duration_s,
    parse_xids,
    unfit,
)
from gpuplugin.core.listsize import MAX_REPLICAS
from gpuplugin.core.sharing import Selection

T = TypeVar("T")


def _integral(value: object) -> object:
    """YAML's 2.0 counts as 2, as it does for NVIDIA's plugin."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _no_text(value: object) -> object:
    if isinstance(value, str):
        # The text of a flag or variable that is right has become a list already.
        raise unfit(value, "must be [] or [0]" if value == "0" else "must be 0 or empty")
    return value


def _channel_0(value: list[int]) -> list[int]:
    if value not in ([], [0]):
        raise unfit(value, "must be [] or [0]")
    return value


def _number_of_seconds(value: object) -> float:
    if isinstance(value, str):
        return parse_duration_s(value)
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    except OverflowError:
        pass
    raise unfit(value, "must be a duration such as 30s or 1m30s")


def _duration(least_s: float, *, infinite: bool = False, never: bool = False) -> PlainValidator:
    """The validator of a duration of at least `least_s`; 0 stands for any above 0s.

    `infinite` allows that word, and `never` allows 0.
    """

    def validate(value: object) -> float:
        if never and value == "0":  # as Go reads it, without a unit
            return 0.0
        number_s = math.inf if infinite and value == "infinite" else _number_of_seconds(value)
        if never and number_s == 0:
            return 0.0
        if not infinite and not math.isfinite(number_s):
            raise unfit(value, "must be finite")
        if not least_s and not number_s > 0:
            raise unfit(value, "must be above 0s")
        if not number_s >= least_s:
            raise ValueError(
                f"must be at least {least_s * 1000:g}ms, found {_written_seconds(number_s)}"
            )
        return number_s

    return PlainValidator(validate)


def _written_seconds(seconds: float) -> str:
    return "infinite" if seconds == math.inf else f"{seconds:g}s"


def _folder(value: object) -> Path:
    if not isinstance(value, str):
        raise unfit(value, "must be text")
    if not value:
        # It would be the working directory, which is never meant by it.
        raise ValueError("must not be empty")
    return Path(value).absolute()


def _xids(value: object) -> list[int | str]:
    """A number, a word, a comma list or a list of these; all of it must be right."""
    if isinstance(value, list):
        return [term for item in value for term in _xids_of(item)]
    return _xids_of(value)


def _xids_of(item: object) -> list[int | str]:
    is_text = isinstance(item, int | float | str) and not isinstance(item, bool)
    good, bad = parse_xids(str(_integral(item))) if is_text else ([], [""])
    if bad or not good:
        raise unfit(item, f"must be Xid numbers or one of {', '.join(sorted(XID_WORDS))}")
    return good


def _device_term(value: object) -> str:
    """An index may be written as a number."""
    number = _integral(value)
    if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
        return str(number)
    if not isinstance(value, str):
        raise unfit(value, "must be an index or text")
    return value


def _selection(value: object) -> Selection:
    number = _integral(value)
    if value == "all":
        return Selection()
    if isinstance(number, int) and not isinstance(number, bool) and number > 0:
        return Selection(count=number)
    if isinstance(value, list) and value:
        return Selection(ids=frozenset(device_reference(one) for one in value))
    raise unfit(value, "must be 'all', a number above 0, or a list of indices and UUIDs")


def _written_selection(selection: Selection) -> object:
    if selection.everything:
        return "all"
    return selection.count if selection.ids is None else sorted(selection.ids)


def _schema(name: str, *types: str) -> WithJsonSchema:
    return WithJsonSchema({"type": list(types) if len(types) > 1 else types[0], "format": name})


_WRITTEN_SECONDS = PlainSerializer(_written_seconds)
_DURATION = _schema("duration", "string", "number")

Integer: TypeAlias = Annotated[int, BeforeValidator(_integral)]
Count: TypeAlias = Annotated[int, Field(ge=1, le=MAX_REPLICAS), BeforeValidator(_integral)]
Seconds: TypeAlias = Annotated[float, _duration(0), _WRITTEN_SECONDS, _DURATION]
SecondsOrInfinite: TypeAlias = Annotated[
    float, _duration(0, infinite=True), _WRITTEN_SECONDS, _DURATION
]
Period: TypeAlias = Annotated[float, _duration(0.01), _WRITTEN_SECONDS, _DURATION]
"""How often something is done, or how long it is waited for: not so short that it is all load."""
PeriodOrNever: TypeAlias = Annotated[
    float, _duration(0.01, never=True), _WRITTEN_SECONDS, _DURATION
]
"""As `Period`; 0 stands for never."""
Folder: TypeAlias = Annotated[Path, PlainValidator(_folder), _schema("folder", "string")]
"""A folder by its absolute path."""
ResourceName: TypeAlias = Annotated[
    str, AfterValidator(full_resource_name), _schema("resource name", "string")
]
Address: TypeAlias = Annotated[str, AfterValidator(listen_address)]
OneOrMore: TypeAlias = Annotated[
    list[T], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
]
"""A list; a single text counts as a list of one."""
Channels: TypeAlias = Annotated[
    list[Integer], AfterValidator(_channel_0), BeforeValidator(_no_text)
]
Xids: TypeAlias = Annotated[
    list[int | str],
    PlainValidator(_xids),
    _schema("list of Xids, `xids` or `all`", "array", "integer", "string"),
]
DeviceTerms: TypeAlias = Annotated[
    list[Annotated[str, PlainValidator(_device_term), WithJsonSchema({"type": "string"})]],
    BeforeValidator(lambda value: value if isinstance(value, list) else [_device_term(value)]),
]
Devices: TypeAlias = Annotated[
    Selection,
    PlainValidator(_selection),
    PlainSerializer(_written_selection),
    _schema("`all`, int or list", "string", "integer", "array"),
]
