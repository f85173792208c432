"""How values of the configuration are read: strictly, so `"3"` is no number and `1` no boolean.

How words are spelled within a text is in `values`; what consists of keys is in `shape`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeGuard, TypeVar

from gpuplugin.config.shape import Form, list_of
from gpuplugin.config.values import (
    XID_WORDS,
    device_reference,
    full_resource_name,
    listen_address,
    parse_duration_s,
    parse_xids,
    unfit,
)
from gpuplugin.core.sharing import Selection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
Word = TypeVar("Word", bound=str)

_SHORTEST_PERIOD_S = 0.01


def one_of(words: Sequence[Word]) -> Form[Word]:
    """One of a few words."""
    quoted = [repr(word) for word in words]
    allowed = " or ".join(part for part in (", ".join(quoted[:-1]), quoted[-1]) if part)

    def read(value: object) -> Word:
        if isinstance(value, str):
            for word in words:
                if word == value:
                    return word
        raise unfit(value, f"must be {allowed}")

    return Form(read, ", ".join(f"`{word}`" for word in words))


def listed(form: Form[list[T]]) -> Form[list[T]]:
    """A list, of which one text may stand for a list of one."""
    return form._replace(read=lambda value: form.read([value] if isinstance(value, str) else value))


def checked(form: Form[T], check: Callable[[T], T]) -> Form[T]:
    """A form with a check of what was read, which raises ValueError."""
    return form._replace(read=lambda value: check(form.read(value)))


def not_empty(form: Form[T]) -> Form[T]:
    """A text or list that has something in it."""

    def check(value: T) -> T:
        if not value:
            raise unfit(value, "must not be empty")
        return value

    return checked(form, check)


def never(why: str) -> Form[None]:
    """A key that must not be given."""

    def read(value: object) -> None:
        if value is not None:
            raise ValueError(why)

    return Form(read, "-")


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise unfit(value, "must be true or false")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise unfit(value, "must be text")
    return value


def _integral(value: object) -> object:
    """YAML's 2.0 counts as 2, as it does for NVIDIA's plugin."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_integer(value: object) -> TypeGuard[int]:
    """Python has booleans among its integers; a configuration has not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(value: object) -> int:
    number = _integral(value)
    if not _is_integer(number):
        raise unfit(value, "must be a whole number")
    return number


def _positive(value: object) -> int:
    number = _integer(value)
    if number < 1:
        raise unfit(value, "must be at least 1")
    return number


def _number_of_seconds(value: object) -> float:
    if isinstance(value, str):
        return parse_duration_s(value)
    if not isinstance(value, float) and not _is_integer(value):
        raise unfit(value, "must be a duration such as 30s or 1m30s")
    try:
        return float(value)
    except OverflowError:
        raise unfit(value, "must be a duration such as 30s or 1m30s") from None


def _seconds_or_infinite(value: object) -> float:
    number_s = math.inf if value == "infinite" else _number_of_seconds(value)
    if not number_s > 0:
        raise unfit(value, "must be above 0s")
    return number_s


def _seconds(value: object) -> float:
    number_s = _number_of_seconds(value)
    if not 0 < number_s < math.inf:
        raise unfit(value, "must be finite and above 0s")
    return number_s


def _period(value: object) -> float:
    number_s = _number_of_seconds(value)
    if not math.isfinite(number_s):
        raise unfit(value, "must be finite")
    if number_s < _SHORTEST_PERIOD_S:
        raise ValueError(f"must be at least 10ms, found {_written_seconds(number_s)}")
    return number_s


def _written_seconds(seconds: object) -> object:
    return "infinite" if seconds == math.inf else f"{seconds:g}s"


def _folder(value: object) -> Path:
    path = _text(value)
    if not path:
        # It would be the working directory, which nobody means by it.
        raise ValueError("must not be empty")
    return Path(path).absolute()


def _xids(value: object) -> list[int | str]:
    """A number, a word, a comma list or a list of these; all of it must be right."""
    if isinstance(value, list):
        return [term for item in value for term in _xids_of(item)]
    return _xids_of(value)


def _xids_of(item: object) -> list[int | str]:
    is_text = isinstance(item, int | float | str) and not isinstance(item, bool)
    good, bad = parse_xids(str(_integral(item))) if is_text else ([], [""])
    if bad or not good:
        words = ", ".join(sorted(XID_WORDS))
        raise unfit(item, f"must be Xid numbers or one of {words}")
    return good


def _device_term(value: object) -> str:
    """An index may be written as a number."""
    number = _integral(value)
    if _is_integer(number) and number >= 0:
        return str(number)
    if not isinstance(value, str):
        raise unfit(value, "must be an index or text")
    return value


def _device_terms(value: object) -> list[str]:
    return _DEVICE_TERMS.read(value) if isinstance(value, list) else [_device_term(value)]


def _selection(value: object) -> Selection:
    """`all`, a count, or a list of device references."""
    if value == "all":
        return Selection()
    number = _integral(value)
    if _is_integer(number) and number > 0:
        return Selection(count=number)
    if isinstance(value, list) and value:
        return Selection(ids=frozenset(device_reference(one) for one in value))
    raise unfit(value, "must be 'all', a number above 0, or a list of indices and UUIDs")


def _written_selection(value: object) -> object:
    if not isinstance(value, Selection) or value.everything:
        return "all"
    return value.count if value.ids is None else sorted(value.ids)


boolean: Final = Form(_boolean, "bool")
text: Final = Form(_text, "string")
integer: Final = Form(_integer, "int")
positive: Final = Form(_positive, "int")
seconds: Final = Form(_seconds, "duration", _written_seconds)
seconds_or_infinite: Final = Form(_seconds_or_infinite, "duration", _written_seconds)
period: Final = Form(_period, "duration", _written_seconds)
"""How often something is done, or how long it is waited for: not so short that it is all load."""
folder: Final = Form(_folder, "-", str)
"""A folder by its absolute path."""
resource_name: Final = Form(lambda value: full_resource_name(_text(value)), "resource name")
address: Final = Form(lambda value: listen_address(_text(value)), "string")
xids: Final = Form(_xids, "list of Xids, `xids` or `all`")
"""Xids by number; `all` or `xids` for all of them."""
_DEVICE_TERMS: Final = list_of(Form(_device_term, "string"))
device_terms: Final = _DEVICE_TERMS._replace(read=_device_terms)
selection: Final = Form(_selection, "`all`, int or list", _written_selection)
