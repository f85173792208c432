"""Merges the layers: command line > environment > file > defaults.

All errors are collected, each with the key and where it was written. What has no effect but
does no harm (unknown keys) becomes a warning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_settings import InitSettingsSource

from gpuplugin.config.document import Document, KeyPath, parse_document
from gpuplugin.config.loaded import (
    MAX_PROBLEMS,
    ConfigError,
    Loaded,
    Problem,
    Record,
    listed,
    read_file,
)
from gpuplugin.config.options import OPTIONS, Kind
from gpuplugin.config.plans import inventory_plan
from gpuplugin.config.problems import MAPPING, dotted, keys, message, models_of, nearest
from gpuplugin.config.settings import Settings
from gpuplugin.config.values import BOOLEANS, XID_WORDS, hint, parse_xids, unfit
from gpuplugin.config.wrappers import EXTENSION, contains_one, why_none
from gpuplugin.core.inventory import entries_without_effect

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pydantic.fields import FieldInfo

    from gpuplugin.config.options import Option

_DEFAULT = Path(__file__).with_name("default.yaml")
_DEFAULT_NAME = "the built-in default.yaml"
_STRATEGY = ("flags", "plugin", "deviceListStrategy")
_ENTRIES = ("sharing", "timeSlicing", "resources")


def load_settings(
    flags: Mapping[Option, str],
    environment: Mapping[str, str],
    config_file: str | None,
    document: Document | None = None,
) -> Loaded:
    """The settings in force.

    `flags` holds the options given on the command line with their text. Without a `config_file`
    (None or empty) the file's layer is `document`; without that, too, the built-in default.

    Raises:
        ConfigError: with all problems, each naming its key and place.
    """
    warnings: list[Problem] = []
    if config_file:
        document = read_document(Path(config_file))
    blank = document is not None and document.blank
    if document is None or blank:
        name = document.name if document else ""
        document = read_document(_DEFAULT, _DEFAULT_NAME)
        text = f"is empty: {document.name} is used; write {{}} to share nothing"
        warnings += [Problem(name, "", text)] if blank else []
    file = _FileLayer(document)
    layers = (
        _text_layer((one, one.flags[0], text) for one, text in flags.items()),
        _text_layer(_variables(environment, warnings)),
        file,
    )
    warnings = [*listed(file.unknown), *warnings]
    if (problem := why_none(document)) is not None:
        # The keys of something else are no mistakes.
        raise ConfigError([problem], () if contains_one(document) else warnings)
    settings = _checked(layers, warnings)
    if settings.daemon.strict_config and file.unknown:
        raise ConfigError(file.unknown)
    if not settings.flags.plugin.device_list_strategy:
        # NVIDIA's plugin accepts it, too, but it is rarely intended.
        text = "is empty: containers get no device"
        warnings.append(Problem(_where(_STRATEGY, layers), dotted(_STRATEGY), text))
    for position, text in entries_without_effect(inventory_plan(settings)):
        path = (*_ENTRIES, position)
        warnings.append(Problem(_where(path, layers), dotted(path), text))
    effective = settings.model_dump(mode="json", by_alias=True, exclude_computed_fields=True)
    return Loaded(
        cast("Settings", record(settings)),
        document.name if blank else config_file or document.name,
        config_file or None,
        tuple(warnings),
        blank,
        effective,
        yaml.safe_dump(effective, sort_keys=False),
    )


def read_document(path: Path, name: str = "") -> Document:
    """The document of a file; raises ConfigError."""
    return parse_document(read_text(path), name or str(path))


def read_text(path: Path) -> str:
    """The text of a file; raises ConfigError."""
    try:
        return read_file(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError([Problem(str(path), "", f"cannot be read: {reason}")]) from error


def record(value: object) -> object:
    """A model, and those within it, as plain data."""
    if isinstance(value, BaseModel):
        names = (*type(value).model_fields, *type(value).model_computed_fields)
        return Record(**{name: record(getattr(value, name)) for name in names})
    return [record(one) for one in value] if isinstance(value, list) else value


@dataclass
class _Layer:
    """Values of one origin, nested as in `Settings`, and where each of them was written."""

    values: dict[str, object] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)


def _variables(
    environment: Mapping[str, str], warnings: list[Problem]
) -> Iterator[tuple[Option, str, str]]:
    """The options that variables set, with the variable and its text.

    A variable that is set but empty is "", false, or as if it were not set. Xids that are none are
    left out with a warning, as NVIDIA's plugin does.
    """
    for option in OPTIONS:
        name = next((one for one in option.variables if one in environment), "")
        text = environment.get(name, "")
        if option.kind is Kind.BOOL:
            text = text or "false"
        elif option.kind is Kind.XIDS:
            good, bad = parse_xids(text)
            text = ",".join(map(str, good))
            words = ", ".join(sorted(XID_WORDS))
            for token in bad:
                message = f"{token!r} is left out: it is no Xid, nor one of {words}"
                warnings.append(Problem(name, dotted(option.path), message))
        if name and (text or option.kind is Kind.STRING):
            yield option, name, text


def _text_layer(given: Iterable[tuple[Option, str, str]]) -> _Layer:
    """Options, each with the flag or variable that sets it and with its text."""
    layer = _Layer()
    for option, name, text in given:
        section = layer.values
        for key in option.path[:-1]:
            section = cast("dict[str, object]", section.setdefault(key, {}))
        section[option.path[-1]] = _value_of(option, text)
        layer.places[option.path] = name
    return layer


def _value_of(option: Option, text: str) -> object:
    """What a flag's or variable's text stands for; its key refuses a wrong one."""
    if option.kind is Kind.LIST:
        return [item.strip() for item in text.split(",") if item.strip()]
    if option.kind is Kind.NUMBERS:
        return {"": [], "0": [0]}.get(text.strip(), text)
    return BOOLEANS.get(text, text) if option.kind is Kind.BOOL else text


class _FileLayer(_Layer):
    """The known keys of a file, in the spelling of the models, without those that are null.

    Keys in another case count, as they do for NVIDIA's plugin, but for those of entries of lists.
    """

    def __init__(self, document: Document) -> None:
        super().__init__()
        self._document = document
        self.unknown: list[Problem] = []
        self.misplaced: list[Problem] = []
        self.values = self._section(document.data, Settings, (), ())

    def _section(
        self, data: Mapping[str, object], model: type[BaseModel], path: KeyPath, written: KeyPath
    ) -> dict[str, object]:
        """What a section sets; `path` has the models' spelling, `written` the file's."""
        fields = _keys(model, path)
        in_list = bool(path) and isinstance(path[-1], int)
        spelling = {} if in_list else {name.lower(): name for name in fields}
        found: dict[str, object] = {}
        for key, value in data.items():
            name = spelling.get(key.lower(), key)
            if name in data:  # an exact key wins over one in another case beside it
                name = key
            here, there = (*path, name), (*written, key)
            if name not in fields:
                if path or not key.startswith(EXTENSION):
                    self._note_unknown(here, there)
                continue
            info = fields[name]
            section = next(models_of(info.annotation), None)
            many = get_origin(info.annotation) is list
            kept = self._value(value, section, here, there, many=many)
            if kept is not None or type(None) in get_args(info.annotation):
                found[name] = kept
        return found

    def _note_unknown(self, path: KeyPath, written: KeyPath) -> None:
        text = "is not a known key and has no effect"
        if len(self.unknown) < MAX_PROBLEMS:
            text += nearest(
                path, [".".join(one) for one, _ in keys(Settings) if one[0] != "daemon"]
            )
        self.unknown.append(Problem(self._document.where(written), dotted(path), text))

    def _value(
        self,
        value: object,
        model: type[BaseModel] | None,
        path: KeyPath,
        written: KeyPath,
        *,
        many: bool = False,
    ) -> object:
        """A value, or a section that is to be a `model`, or many of them."""
        self.places[path] = self._document.where(written)
        if isinstance(value, list) and (many or model is None):
            return [
                self._value(one, model, (*path, position), (*written, position))
                for position, one in enumerate(value)
            ]
        if value is None or model is None or many:
            return value
        if isinstance(value, dict):
            return self._section(value, model, path, written)
        # Noted here, too: a flag or variable for a key of the section would hide it.
        text = f"{unfit(value, MAPPING)}{hint([value]) if isinstance(value, str) else ''}"
        self.misplaced.append(Problem(self.places[path], dotted(path), text))
        return value


def _keys(model: type[BaseModel], path: KeyPath) -> dict[str, FieldInfo]:
    """What a section of the file may have, by its name there."""
    fields = {one.alias or "": one for one in model.model_fields.values()}
    return fields if path else {name: one for name, one in fields.items() if name != "daemon"}


def _checked(layers: tuple[_Layer, _Layer, _FileLayer], warnings: Sequence[Problem]) -> Settings:
    problems = layers[-1].misplaced
    try:
        sources = tuple(InitSettingsSource(Settings, layer.values) for layer in layers)
        settings = Settings(_build_sources=(sources, {}))
    except ValidationError as error:
        for one in error.errors(include_url=False):
            # Of a default that is wrong, pydantic has the attribute's name.
            path = tuple(to_camel(key) if isinstance(key, str) else key for key in one["loc"])
            problems.append(Problem(_where(path, layers), dotted(path), message(one)))
        settings = None
    if settings is None or problems:
        raise ConfigError(tuple(dict.fromkeys(problems)), warnings)
    return settings


def _where(path: KeyPath, layers: Iterable[_Layer]) -> str:
    """Where the value in force at `path` was written, or what should have held it."""
    beginnings = [path[:length] for length in range(len(path), 0, -1)]
    places = (layer.places.get(one) for layer in layers for one in beginnings)
    return next(filter(None, places), "")
