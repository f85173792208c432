"""A YAML (or JSON) file with the line of every value, so that an error can say where it is."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias, cast

import yaml

from gpuplugin.config.yamltext import YamlError, compose_yaml, read_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list positions from the root of a document to a value."""


MAX_VALUES = 100_000
"""Values of a document, with aliases written out; a large configuration has some thousands."""
MAX_DEPTH = 100


class DocumentError(Exception):
    """The file is not a YAML mapping; the text names the line where one is known."""


@dataclass(frozen=True, slots=True)
class Document:
    """The data of a file; `lines` gives the line (from 1) of every key and list entry."""

    name: str
    data: Mapping[str, object]
    lines: Mapping[KeyPath, int]

    def where(self, path: KeyPath) -> str:
        """`name:line` of a value, or of the closest enclosing value that the file has."""
        for length in range(len(path), 0, -1):
            if (line := self.lines.get(path[:length])) is not None:
                return f"{self.name}:{line}"
        return self.name


def parse_document(text: str, name: str) -> Document:
    """Read a document; an empty one is valid and has no keys.

    Raises:
        DocumentError: not YAML, a repeated key, or something else than a mapping at the top.
    """
    try:
        node = compose_yaml(text)
        # The lines first: they refuse what would take for ever to make data of.
        lines = _Lines(name).collected(node)
        data = read_yaml(text)
    except YamlError as error:
        where = name if error.line is None else f"{name}:{error.line}"
        raise DocumentError(f"{where}: {error.problem}") from error
    if node is None or data is None:
        return Document(name, MappingProxyType({}), MappingProxyType({}))
    if not isinstance(data, dict):
        raise DocumentError(f"{name}:1: must be a mapping of keys such as version and sharing")
    return Document(name, cast("Mapping[str, object]", data), MappingProxyType(lines))


class _Lines:
    """Collects the lines of a document's values; an alias stands for all that it names."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines: dict[KeyPath, int] = {}
        self._active: list[yaml.Node] = []
        self._visited = 0

    def collected(self, node: yaml.Node | None) -> dict[KeyPath, int]:
        """The line of every key and list entry below `node`.

        Raises:
            DocumentError: a key that is given twice, or a shape that nobody means.
        """
        if node is not None:
            self._visit(node, ())
        return self._lines

    def _visit(self, node: yaml.Node, path: KeyPath) -> None:
        self._check_shape(node)
        self._active.append(node)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise self._error(key, "a key must be a word")
                key_path = (*path, key.value)
                if key_path in self._lines:
                    raise self._error(key, f"the key {key.value!r} is given twice")
                self._lines[key_path] = key.start_mark.line + 1
                self._visit(value, key_path)
        elif isinstance(node, yaml.SequenceNode):
            for position, value in enumerate(node.value):
                self._lines[*path, position] = value.start_mark.line + 1
                self._visit(value, (*path, position))
        self._active.pop()

    def _check_shape(self, node: yaml.Node) -> None:
        """Refuse what aliases make endless, or so large or deep that reading it would fail."""
        self._visited += 1
        if any(node is parent for parent in self._active):
            raise self._error(node, "a value contains itself")
        if self._visited > MAX_VALUES:
            raise self._error(node, "too many values; does it use YAML aliases within aliases?")
        if len(self._active) > MAX_DEPTH:
            raise self._error(node, "nested too deeply")

    def _error(self, node: yaml.Node, problem: str) -> DocumentError:
        return DocumentError(f"{self._name}:{node.start_mark.line + 1}: {problem}")
