"""Puts the layers together: command line > environment > file > defaults.

All errors are collected, each with the key and where it was written. What cannot be honoured but
does no harm (unknown keys) becomes a warning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from gpuplugin.config.casing import canonical
from gpuplugin.config.document import Document, DocumentError, parse_document
from gpuplugin.config.loaded import ConfigError, Loaded, Problem
from gpuplugin.config.options import (
    DEFAULT_CDI_ROOT,
    DEFAULT_HOST_PROC,
    DEFAULT_KUBELET_DIR,
    DEFAULT_POD_LOGS,
    OPTIONS,
)
from gpuplugin.config.settings import SETTINGS, Settings
from gpuplugin.config.shape import Refused
from gpuplugin.config.unknown import misshapen, unknown_keys
from gpuplugin.config.values import XID_WORDS, unfit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gpuplugin.config.document import KeyPath
    from gpuplugin.config.option import Option, Value

_STRATEGY = ("flags", "plugin", "deviceListStrategy")
DEFAULT_FILE = "the built-in default.yaml"
_DEFAULTS = {
    "daemon": {
        "kubeletDir": DEFAULT_KUBELET_DIR,
        "cdiRoot": DEFAULT_CDI_ROOT,
        "hostProc": DEFAULT_HOST_PROC,
        "podLogs": DEFAULT_POD_LOGS,
    }
}


@dataclass(frozen=True, slots=True)
class _Layer:
    """Values of one origin, nested as in `Settings`, with the origin of each path."""

    values: Mapping[str, object]
    origins: Mapping[KeyPath, str]
    document: Document | None = None

    def where(self, path: KeyPath) -> str:
        """Where the value at `path`, or the closest one that encloses it, was written."""
        if self.document:
            return self.document.where(path)
        # A flag or variable gives a whole list, in which an item may be what is wrong.
        beginnings = (path[:length] for length in range(len(path), 0, -1))
        return next((self.origins[one] for one in beginnings if one in self.origins), "")

    def depth(self, path: KeyPath) -> int:
        """How many of the leading keys of `path` this layer has."""
        value: object = self.values
        for depth, key in enumerate(path):
            value = _child(value, key)
            if value is _ABSENT:
                return depth
        return len(path)


_ABSENT = object()


def _child(value: object, key: str | int) -> object:
    if isinstance(value, dict):
        return value.get(key, _ABSENT)
    if isinstance(value, list) and isinstance(key, int) and key < len(value):
        return value[key]
    return _ABSENT


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
    usual = default or default_document()
    document = read_config_file(Path(config_file)) if config_file else usual
    source = config_file or document.name
    document = canonical(document, Settings)
    wrong_shapes = tuple(misshapen(document.data, Settings))
    problems = [_misshapen(document, path) for path in wrong_shapes]
    layers = (
        _flag_layer(flags, problems),
        _variable_layer(environment, problems),
        _Layer(_without(_file_values(document), wrong_shapes), {}, document),
        _Layer(_DEFAULTS, {}),
    )
    settings = _checked(layers, problems)
    unknown = _unknown(document)
    if settings.daemon.strict_config and unknown:
        raise ConfigError(unknown)
    warnings = (*unknown, *_without_strategy(settings, layers), *_malformed(environment))
    effective = cast("Mapping[str, object]", SETTINGS.written(settings))
    return Loaded(settings, source, config_file or None, warnings, effective)


def _misshapen(document: Document, path: KeyPath) -> Problem:
    """A section that is no mapping."""
    value: object = document.data
    for key in path:
        value = _child(value, key)
    error = unfit(value, "must be a mapping of keys")
    return Problem(document.where(path), dotted(path), str(error))


def _without(values: Mapping[str, object], paths: Sequence[KeyPath]) -> Mapping[str, object]:
    """The values without those at `paths`, which are told already."""
    firsts = {path[0]: [other[1:] for other in paths if other[0] == path[0]] for path in paths}
    kept: dict[str, object] = {}
    for key, value in values.items():
        rest = firsts.get(key)
        if rest is None:
            kept[key] = value
        elif all(rest) and isinstance(value, dict):
            kept[key] = _without(value, rest)
    return kept


def read_config_file(path: Path) -> Document:
    """Read and parse a file, unchecked.

    Raises:
        ConfigError: it cannot be read or is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError([Problem(str(path), "", f"cannot be read: {reason}")]) from error
    return _parse(text, str(path))


def default_document() -> Document:
    """The file that is in force when none is given."""
    text = Path(__file__).with_name("default.yaml").read_text("utf-8")
    return _parse(text, DEFAULT_FILE)


def _parse(text: str, name: str) -> Document:
    try:
        return parse_document(text, name)
    except DocumentError as error:
        raise ConfigError([Problem("", "", str(error))]) from error


def _file_values(document: Document) -> Mapping[str, object]:
    """What the file may set: not the daemon's own options. An empty version means v1."""
    values = {
        key: value
        for key, value in document.data.items()
        if key != "daemon" and value is not None and not (key == "version" and value == "")
    }
    return cast("Mapping[str, object]", _without_nulls(values))


def _without_nulls(value: object) -> object:
    """A null in the file counts as absent, except where it stands for a whole strategy."""
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: {} if key == "timeSlicing" and item is None else _without_nulls(item)
        for key, item in value.items()
        if item is not None or key == "timeSlicing"
    }


def _flag_layer(flags: Mapping[Option, str], problems: list[Problem]) -> _Layer:
    texts = {option: (text, option.flags[0]) for option, text in flags.items()}
    values: dict[str, object] = {}
    origins: dict[KeyPath, str] = {}
    for option, (text, origin) in texts.items():
        try:
            _put(values, option.path, option.read(text))
        except ValueError as error:
            problems.append(Problem(origin, ".".join(option.path), str(error)))
        origins[option.path] = origin
    return _Layer(values, origins)


def _variable_layer(environment: Mapping[str, str], problems: list[Problem]) -> _Layer:
    values: dict[str, object] = {}
    origins: dict[KeyPath, str] = {}
    for option in OPTIONS:
        variable = next((name for name in option.variables if name in environment), None)
        if variable is None:
            continue
        try:
            value = option.read_variable(environment[variable])
        except ValueError as error:
            problems.append(Problem(variable, ".".join(option.path), str(error)))
            continue
        if value is not None:
            _put(values, option.path, value)
            origins[option.path] = variable
    return _Layer(values, origins)


def _put(values: dict[str, object], path: tuple[str, ...], value: Value) -> None:
    section = values
    for key in path[:-1]:
        section = cast("dict[str, object]", section.setdefault(key, {}))
    section[path[-1]] = value


def _checked(layers: Sequence[_Layer], problems: list[Problem]) -> Settings:
    merged: dict[str, object] = {}
    for layer in reversed(layers):
        merged = _merged(merged, layer.values)
    try:
        settings = SETTINGS.read(merged)
    except Refused as refused:
        problems.extend(
            Problem(_where(path, layers), dotted(path), text) for path, text in refused.faults
        )
        raise ConfigError(problems) from None
    if problems:
        raise ConfigError(problems)
    return settings


def _merged(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    """Mappings key by key; anything else in `above` takes the place of what is below it."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(value, dict) and isinstance(under, dict):
            merged[key] = _merged(under, value)
        else:
            merged[key] = value
    return merged


def _where(path: KeyPath, layers: Sequence[_Layer]) -> str:
    """Where the value in force at `path` was written, or what should have held it."""
    layer = max(layers, key=lambda layer: layer.depth(path))
    return layer.where(path[: layer.depth(path)])


def dotted(path: KeyPath) -> str:
    """`sharing.timeSlicing.resources[0].replicas`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _unknown(document: Document) -> tuple[Problem, ...]:
    return tuple(
        Problem(document.where(path), dotted(path), message)
        for path, message in unknown_keys(document.data, Settings)
    )


def _without_strategy(settings: Settings, layers: Sequence[_Layer]) -> Iterator[Problem]:
    """No strategy at all is NVIDIA's to accept, but hardly what anybody wants."""
    if not settings.flags.plugin.device_list_strategy:
        text = "is empty: containers will be told of no device"
        yield Problem(_where(_STRATEGY, layers), dotted(_STRATEGY), text)


def _malformed(environment: Mapping[str, str]) -> Iterator[Problem]:
    """Parts of variables that nobody can make sense of, and that take nothing else along."""
    for option in OPTIONS:
        variable = next((name for name in option.variables if name in environment), None)
        for token in option.malformed(environment[variable]) if variable else ():
            yield Problem(
                variable or "",
                dotted(option.path),
                f"{token!r} is left out: it is no Xid, nor one of {', '.join(sorted(XID_WORDS))}",
            )
