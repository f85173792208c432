"""Merges the layers: command line > environment > file > defaults.

All errors are collected, each with the key and where it was written. What has no effect but
does no harm (unknown keys) becomes a warning.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_settings import PydanticBaseSettingsSource

from gpuplugin.config.document import Document, KeyPath, parse_document
from gpuplugin.config.loaded import ConfigError, Loaded, Problem, Record
from gpuplugin.config.options import OPTIONS, is_list, section_of
from gpuplugin.config.settings import Settings
from gpuplugin.config.values import XID_WORDS, unfit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

    from gpuplugin.config.options import Option, Value

_DEFAULT = Path(__file__).with_name("default.yaml")
_DEFAULT_NAME = "the built-in default.yaml"
_STRATEGY = ("flags", "plugin", "deviceListStrategy")
_TEXTS = {
    "missing": "is required",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "string_type": "must be text",
    "list_type": "must be a list",
    "model_type": "must be a mapping of keys",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
}
"""The texts of pydantic's errors, by their type."""


def load_settings(
    flags: Mapping[Option, str],
    environment: Mapping[str, str],
    config_file: str | None,
    default: Document | None = None,
) -> Loaded:
    """The settings in force.

    `flags` holds the options given on the command line with their text; `config_file` is None or
    empty for `default`, which is the built-in file if it is not given.

    Raises:
        ConfigError: with all problems, each naming its key and place.
    """
    document = (
        _read(Path(config_file)) if config_file else default or _read(_DEFAULT, _DEFAULT_NAME)
    )
    variables = {
        option: name
        for option in OPTIONS
        for name in reversed(option.variables)
        if name in environment
    }
    file = _FileLayer(document)
    layers = (
        _TextLayer((one, one.flags[0], partial(one.read, text)) for one, text in flags.items()),
        _TextLayer(
            (one, name, partial(one.read_variable, environment[name]))
            for one, name in variables.items()
        ),
        file,
    )
    settings = _checked(layers)
    if settings.daemon.strict_config and file.unknown:
        raise ConfigError(file.unknown)
    warnings = (
        *file.unknown,
        *_without_strategy(settings, layers),
        *_malformed(variables, environment),
    )
    effective = settings.model_dump(mode="json", by_alias=True, exclude_computed_fields=True)
    plain = cast("Settings", record(settings))
    return Loaded(
        plain,
        config_file or document.name,
        config_file or None,
        warnings,
        effective,
        yaml.safe_dump(effective, sort_keys=False),
    )


def _read(path: Path, name: str = "") -> Document:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError([Problem(str(path), "", f"cannot be read: {reason}")]) from error
    return parse_document(text, name or str(path))


def dotted(path: KeyPath) -> str:
    """`sharing.timeSlicing.resources[0].replicas`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def record(value: object) -> object:
    if isinstance(value, BaseModel):
        names = (*type(value).model_fields, *type(value).model_computed_fields)
        return Record({name: record(getattr(value, name)) for name in names})
    return [record(one) for one in value] if isinstance(value, list) else value


class _Layer(PydanticBaseSettingsSource):
    """Values of one origin, nested as in `Settings`, and where each of them was written."""

    def __init__(self) -> None:
        super().__init__(Settings)
        self.values: dict[str, object] = {}
        self.places: dict[KeyPath, str] = {}
        self.problems: list[Problem] = []

    def __call__(self) -> dict[str, Any]:
        return self.values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Part of the protocol of sources; here all values are taken at once."""
        return self.values.get(field.alias or field_name), field.alias or field_name, False


class _TextLayer(_Layer):
    """Options by the flag or variable that sets them, each with what reads its text."""

    def __init__(self, given: Iterable[tuple[Option, str, Callable[[], Value | None]]]) -> None:
        super().__init__()
        for option, name, read in given:
            try:
                value = read()
            except ValueError as error:
                self.problems.append(Problem(name, dotted(option.path), str(error)))
                continue
            if value is not None:
                section = self.values
                for key in option.path[:-1]:
                    section = cast("dict[str, object]", section.setdefault(key, {}))
                section[option.path[-1]] = value
                self.places[option.path] = name


class _FileLayer(_Layer):
    """The known keys of a file, in the spelling of the models, without those that are null.

    Keys in another case count, as they do for NVIDIA's plugin, but for those of entries of lists.
    """

    def __init__(self, document: Document) -> None:
        super().__init__()
        self._document = document
        self.unknown: list[Problem] = []
        self.values = self._section(document.data, Settings, (), ())
        if self.values.get("version") == "":
            del self.values["version"]

    def _section(
        self, data: Mapping[str, object], model: type[BaseModel], path: KeyPath, written: KeyPath
    ) -> dict[str, object]:
        """What a section sets; `path` has the models' spelling, `written` the file's."""
        fields = _keys(model, path)
        in_list = bool(path) and isinstance(path[-1], int)
        spelling = {} if in_list else {name.lower(): name for name in fields}
        # YAML has numbers and booleans as keys; they become text, as in JSON.
        texts = {str(key): value for key, value in data.items()}
        found: dict[str, object] = {}
        for key, value in texts.items():
            name = spelling.get(key.lower(), key)
            if name in texts:  # an exact key wins over one in another case beside it
                name = key
            here, there = (*path, name), (*written, key)
            self.places[here] = self._document.where(there)
            if name not in fields:
                self.unknown.append(Problem(self.places[here], dotted(here), _unknown(here)))
                continue
            kept = self._value(value, fields[name], here, there)
            if kept is not None:
                found[name] = kept
        return found

    def _value(self, value: object, field: FieldInfo, path: KeyPath, written: KeyPath) -> object:
        model = section_of(field)
        if isinstance(value, list) and (model is None or is_list(field)):
            return [
                self._entry(one, model, (*path, position), (*written, position))
                for position, one in enumerate(value)
            ]
        if model is None or is_list(field):
            return value
        if isinstance(value, dict):
            return self._section(value, model, path, written)
        if value is None:  # a strategy that is named is one that is chosen
            return {} if field.annotation == model | None else None
        text = str(unfit(value, _TEXTS["model_type"]))
        self.problems.append(Problem(self.places[path], dotted(path), text))
        return None

    def _entry(
        self, value: object, model: type[BaseModel] | None, path: KeyPath, written: KeyPath
    ) -> object:
        self.places[path] = self._document.where(written)
        if model is not None and isinstance(value, dict):
            return self._section(value, model, path, written)
        return value


def _keys(model: type[BaseModel], path: KeyPath) -> dict[str, FieldInfo]:
    """What a section of the file may have, by its name there."""
    fields = {field.alias or "": field for field in model.model_fields.values()}
    return fields if path else {name: one for name, one in fields.items() if name != "daemon"}


def _known_paths(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    for name, field in _keys(model, path).items():
        yield ".".join((*path, name))
        if (inner := section_of(field)) is not None:
            yield from _known_paths(inner, (*path, name))


def _unknown(path: KeyPath) -> str:
    import difflib  # a file that is right needs it not

    names = [str(part) for part in path if not isinstance(part, int)]
    known = tuple(_known_paths(Settings, ()))
    same_name = [one for one in known if one.rpartition(".")[2].lower() == names[-1].lower()]
    nearest = same_name or difflib.get_close_matches(".".join(names), known, n=1, cutoff=0.7)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"is not a known key and has no effect{hint}"


def _checked(layers: tuple[_Layer, ...]) -> Settings:
    problems = [problem for layer in layers for problem in layer.problems]
    settings = None
    try:
        settings = Settings(_build_sources=(layers, {}))
    except ValidationError as error:
        for one in error.errors(include_url=False):
            # Of a default that is wrong, pydantic has the attribute's name.
            path = tuple(to_camel(key) if isinstance(key, str) else key for key in one["loc"])
            problems.append(Problem(_where(path, layers), dotted(path), _text(one)))
    if settings is None or problems:
        raise ConfigError(problems)
    return settings


def _text(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    if "error" in context:
        return str(context["error"])
    text = _TEXTS.get(error["type"], error["msg"]).format(**context)
    return text if error["type"] == "missing" else str(unfit(error["input"], text))


def _where(path: KeyPath, layers: Iterable[_Layer]) -> str:
    """Where the value in force at `path` was written, or what should have held it."""
    beginnings = [path[:length] for length in range(len(path), 0, -1)]
    places = (layer.places.get(one) for layer in layers for one in beginnings)
    return next(filter(None, places), "")


def _without_strategy(settings: Settings, layers: Iterable[_Layer]) -> Iterator[Problem]:
    """NVIDIA's plugin accepts an empty list of strategies, which is rarely intended."""
    if not settings.flags.plugin.device_list_strategy:
        text = "is empty: containers get no device"
        yield Problem(_where(_STRATEGY, layers), dotted(_STRATEGY), text)


def _malformed(
    variables: Mapping[Option, str], environment: Mapping[str, str]
) -> Iterator[Problem]:
    """Parts of variables that cannot be read; the rest of the variable has effect."""
    words = ", ".join(sorted(XID_WORDS))
    for option, name in variables.items():
        for token in option.malformed(environment[name]):
            message = f"{token!r} is left out: it is no Xid, nor one of {words}"
            yield Problem(name, dotted(option.path), message)
