"""What a section of the configuration is made of, and how a mapping is checked against it.

Which sections there are is in `settings`, how single values are read in `forms`.
"""

from __future__ import annotations

from typing import (
    TYPE_CHECKING,
    ClassVar,
    Final,
    Generic,
    NamedTuple,
    NoReturn,
    TypeVar,
    cast,
    dataclass_transform,
)

from gpuplugin.config.values import unfit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gpuplugin.config.document import KeyPath

    Fault = tuple[KeyPath, str]
    """Where in a value something is wrong, and what."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
S = TypeVar("S", bound="Section")

REQUIRED: Final = object()
"""The default of a key that has none."""


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
    section: type[Section] | None = None
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
    """An attribute of a section; its name in the file is the same in camelCase if not given."""
    return cast("T", Key(name, "", form, default, meaning))


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(key,))
class Section:
    """A part of the configuration: an immutable value for each `key` of its class.

    What a dataclass is, but without code that is made anew at every start.
    """

    keys: ClassVar[Mapping[str, Key]]
    """By their names in the file."""

    def __init_subclass__(cls) -> None:
        keys = (
            one._replace(name=one.name or _camel_case(attribute), attribute=attribute)
            for attribute, one in vars(cls).items()
            if isinstance(one, Key)
        )
        cls.keys = {one.name: one for one in keys}

    def __init__(self, **values: object) -> None:
        amiss = {one.attribute for one in self.keys.values()} ^ values.keys()
        if amiss:
            raise TypeError(f"{type(self).__name__}: not exactly its keys: {sorted(amiss)}")
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]  # its lists have none either

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({values})"

    @classmethod
    def faults_together(cls, values: Mapping[str, object]) -> Iterable[Fault]:  # noqa: ARG003
        """What is wrong with values, by attribute, that are right each for itself."""
        return ()


def _camel_case(attribute: str) -> str:
    first, *others = attribute.split("_")
    return first + "".join(word.capitalize() for word in others)


def section(kind: type[S]) -> Form[S]:
    """The form of a section: what is not given has its default, what nobody knows no effect."""

    def read(value: object) -> S:
        if not isinstance(value, dict):
            raise unfit(value, "must be a mapping of keys")
        return _checked(kind, value)

    def written(value: object) -> object:
        return {
            name: one.form.written(getattr(value, one.attribute)) for name, one in kind.keys.items()
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


def _checked(kind: type[S], given: Mapping[str, object]) -> S:
    values: dict[str, object] = {}
    faults: list[Fault] = []
    for name, one in kind.keys.items():
        value = given.get(name, one.default)
        if value is REQUIRED:
            faults.append(((name,), "is required"))
            continue
        try:
            values[one.attribute] = one.form.read(value)
        except ValueError as error:
            faults.extend(_faults_at(name, error))
    faults.extend(kind.faults_together(values))
    if faults:
        raise Refused(faults)
    return kind(**values)


def _faults_at(place: str | int, error: ValueError) -> Iterable[Fault]:
    """The faults of a value as those of what it is part of."""
    if isinstance(error, Refused):
        return [((place, *path), text) for path, text in error.faults]
    return [((place,), str(error))]
