"""A YAML (or JSON) file with the line of every value, so that an error can say where it is."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias, cast

import yaml

from gpuplugin.config.yamltext import YamlError, compose_yaml, read_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list positions from the root of a document to a value."""


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
        node, data = compose_yaml(text), read_yaml(text)
    except YamlError as error:
        where = name if error.line is None else f"{name}:{error.line}"
        raise DocumentError(f"{where}: {error.problem}") from error
    if node is None or data is None:
        return Document(name, MappingProxyType({}), MappingProxyType({}))
    if not isinstance(data, dict):
        raise DocumentError(f"{name}:1: must be a mapping of keys such as version and sharing")
    lines: dict[KeyPath, int] = {}
    _collect_lines(name, node, (), lines, active=())
    return Document(name, cast("Mapping[str, object]", data), MappingProxyType(lines))


def _collect_lines(
    name: str,
    node: yaml.Node,
    path: KeyPath,
    lines: dict[KeyPath, int],
    active: Sequence[yaml.Node],
) -> None:
    if any(node is parent for parent in active):
        raise DocumentError(f"{name}:{node.start_mark.line + 1}: a value contains itself")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            key_path = (*path, str(key.value))
            if key_path in lines:
                line = key.start_mark.line + 1
                raise DocumentError(f"{name}:{line}: the key {key.value!r} is given twice")
            lines[key_path] = key.start_mark.line + 1
            _collect_lines(name, value, key_path, lines, (*active, node))
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            lines[(*path, position)] = value.start_mark.line + 1
            _collect_lines(name, value, (*path, position), lines, (*active, node))
