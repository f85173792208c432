"""YAML (or JSON) as data with the line of every value, so that an error can say where it is."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

import yaml
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from gpuplugin.config.loaded import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list positions from the root of a document to a value."""

MAX_VALUES = 100_000
"""Values of a document, with aliases written out; a large configuration has some thousands."""
MAX_DEPTH = 100


class YamlError(Exception):
    """The text is not YAML: `problem` in words, and the `line` (from 1) where it is known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem if line is None else f"line {line}: {problem}")
        self.problem = problem
        self.line = line


@dataclass(frozen=True, slots=True)
class Document:
    """The data of a file; `lines` gives the line (from 1) of every key and list entry.

    `blank` is true for a file with nothing in it but comments.
    """

    name: str
    data: Mapping[str, object]
    lines: Mapping[KeyPath, int]
    blank: bool = False

    def where(self, path: KeyPath) -> str:
        """`name:line` of a value, or of the closest enclosing value that the file has."""
        for length in range(len(path), 0, -1):
            if (line := self.lines.get(path[:length])) is not None:
                return f"{self.name}:{line}"
        return self.name


def parse_document(text: str, name: str) -> Document:
    """Read a document; an empty one is valid and has no keys.

    Raises:
        ConfigError: not YAML, a repeated key, or something else than a mapping at the top.
    """
    lines: dict[KeyPath, int] = {}
    data: object = None
    try:
        with _loader(text) as loader:
            if (node := loader.get_single_node()) is not None:
                # The lines first: they refuse what would take for ever to make data of.
                _collect_lines(node, (), [], lines, iter(range(MAX_VALUES)))
                data = loader.construct_document(node)
    except YamlError as error:
        where = name if error.line is None else f"{name}:{error.line}"
        raise ConfigError([Problem(where, "", error.problem)]) from error
    blank, data = data is None, {} if data is None else data
    if not isinstance(data, dict):
        problem = "must be a mapping of keys such as version and sharing"
        raise ConfigError([Problem(f"{name}:1", "", problem)])
    return Document(name, cast("Mapping[str, object]", data), lines, blank)


def read_yaml(text: str) -> object:
    """The data of one document; None if it is empty.

    Raises:
        YamlError: not YAML, or more than one document.
    """
    with _loader(text) as loader:
        data: object = loader.get_single_data()
        return data


def read_yaml_documents(text: str) -> tuple[object, ...]:
    """The data of all documents; None for each that is empty.

    Raises:
        YamlError: not YAML.
    """
    documents: list[object] = []
    with _loader(text) as loader:
        while loader.check_node():
            documents.append(loader.construct_document(loader.get_node()))
    return tuple(documents)


def _collect_lines(
    node: yaml.Node,
    path: KeyPath,
    parents: list[yaml.Node],
    lines: dict[KeyPath, int],
    left: Iterator[int],
) -> None:
    """Note the line of every value below `node`; an alias stands for all that it names.

    Raises:
        YamlError: a key that is given twice, what aliases make endless, or so large or deep that
            reading it would fail.
    """
    if any(node is parent for parent in parents):
        raise _wrong(node, "a value contains itself")
    if next(left, None) is None:
        raise _wrong(node, "too many values; does it use YAML aliases within aliases?")
    if len(parents) > MAX_DEPTH:
        raise _wrong(node, "nested too deeply")
    inner: list[tuple[KeyPath, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _wrong(key, "a key must be a word")
            inner.append(((*path, key.value), key, value))
    elif isinstance(node, yaml.SequenceNode):
        inner.extend(((*path, position), one, one) for position, one in enumerate(node.value))
    for here, place, value in inner:
        if here in lines:
            raise _wrong(place, f"the key {here[-1]!r} is given twice")
        lines[here] = place.start_mark.line + 1
        _collect_lines(value, here, [*parents, node], lines, left)


def _wrong(node: yaml.Node, problem: str) -> YamlError:
    return YamlError(problem, node.start_mark.line + 1)


class _Loader(yaml.SafeLoader):
    """The safe loader, with one error for every value that is not of its tag."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(
                problem=f"not a valid {kind}", problem_mark=node.start_mark
            ) from error


@contextmanager
def _loader(text: str) -> Iterator[_Loader]:
    try:
        yield _Loader(text)
    except yaml.MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        raise YamlError(error.problem or "not valid YAML", line) from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(f"the character #x{error.character:04x} is not allowed", line) from error
    except yaml.YAMLError as error:
        raise YamlError(f"not valid YAML: {error}") from error
    except RecursionError as error:
        raise YamlError("nested too deeply") from error
