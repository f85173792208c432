"""What a section of the configuration is made of, and how a mapping is checked against it.

A section is a dataclass, each field of which is made by `key`. Which sections there are is in
`settings`, how single values are read in `forms`.
"""

from __future__ import annotations

from dataclasses import field, fields
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar, cast

from gpuplugin.config.values import unfit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from _typeshed import DataclassInstance

    from gpuplugin.config.document import KeyPath

    Fault = tuple[KeyPath, str]
    """Where in a value something is wrong, and what."""
    Together = Callable[[Mapping[str, object]], Iterable[Fault]]
    """What is wrong with values, by attribute, that are right each for itself."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Section = TypeVar("Section", bound="DataclassInstance")

REQUIRED: Final = object()
"""The default of a key that has none."""
_KEY = "key"


class Refused(ValueError):
    """A value of several parts cannot be used; `faults` has everything that is wrong with it."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(text for _, text in faults))
        self.faults = tuple(faults)


def _as_it_is(value: object) -> object:
    return value


class Form(NamedTuple, Generic[T_co]):
    """How a kind of value is read from what the file has, and `written` for JSON.

    `read` raises ValueError, or Refused where parts of the value are wrong. `spelled` is what the
    reference calls it. `section` is the section that it is, or that `many` of are in it.
    """

    read: Callable[[object], T_co]
    spelled: str
    written: Callable[[object], object] = _as_it_is
    section: type[DataclassInstance] | None = None
    many: bool = False


class Key(NamedTuple):
    """A key of a section: its name in the file, and the attribute that has its value.

    `default` is written as in the file; `meaning` is for the reference, which has that of the
    option for the same key if it is empty.
    """

    name: str
    attribute: str
    form: Form[object]
    default: object
    meaning: str


def key(form: Form[T], default: object = REQUIRED, meaning: str = "", *, name: str = "") -> T:
    """A field of a section; its name in the file is the attribute's in camelCase if not given."""
    made: T = field(metadata={_KEY: Key(name, "", form, default, meaning)})
    return made


def keys_of(kind: type[DataclassInstance]) -> dict[str, Key]:
    """The keys of a section by their names in the file."""
    keys: dict[str, Key] = {}
    for one in fields(kind):
        declared: Key = one.metadata[_KEY]
        name = declared.name or _camel_case(one.name)
        keys[name] = declared._replace(name=name, attribute=one.name)
    return keys


def _camel_case(attribute: str) -> str:
    first, *others = attribute.split("_")
    return first + "".join(word.capitalize() for word in others)


def section(kind: type[Section], together: Together | None = None) -> Form[Section]:
    """The form of a section, which has its defaults for the keys that are not given.

    `together` looks at what could be read. Keys that nobody knows are left out.
    """

    def read(value: object) -> Section:
        if not isinstance(value, dict):
            raise unfit(value, "must be a mapping of keys")
        return _checked(kind, value, together)

    def written(value: object) -> object:
        return {
            name: one.form.written(getattr(value, one.attribute))
            for name, one in keys_of(kind).items()
        }

    return Form(read, "-", written, kind)


def list_of(item: Form[T]) -> Form[list[T]]:
    """The form of a list."""

    def read(value: object) -> list[T]:
        if not isinstance(value, list):
            raise unfit(value, "must be a list")
        good: list[T] = []
        faults: list[Fault] = []
        for position, one in enumerate(value):
            try:
                good.append(item.read(one))
            except ValueError as error:
                faults.extend(_faults_at(position, error))
        if faults:
            raise Refused(faults)
        return good

    def written(value: object) -> object:
        return [item.written(one) for one in cast("list[object]", value)]

    return Form(read, f"list of {item.spelled}", written, item.section, many=True)


def optional(form: Form[T]) -> Form[T | None]:
    """The form of a value that may be None."""

    def read(value: object) -> T | None:
        return None if value is None else form.read(value)

    def written(value: object) -> object:
        return None if value is None else form.written(value)

    return Form(read, form.spelled, written, form.section, form.many)


def _checked(
    kind: type[Section], given: Mapping[str, object], together: Together | None
) -> Section:
    values: dict[str, object] = {}
    faults: list[Fault] = []
    for name, one in keys_of(kind).items():
        value = given.get(name, one.default)
        if value is REQUIRED:
            faults.append(((name,), "is required"))
            continue
        try:
            values[one.attribute] = one.form.read(value)
        except ValueError as error:
            faults.extend(_faults_at(name, error))
    if together is not None:
        faults.extend(together(values))
    if faults:
        raise Refused(faults)
    return kind(**values)


def _faults_at(place: str | int, error: ValueError) -> Iterable[Fault]:
    """The faults of a value as those of what it is part of."""
    if isinstance(error, Refused):
        return [((place, *path), text) for path, text in error.faults]
    return [((place,), str(error))]
