"""Keys in another case: `MigStrategy` counts as `migStrategy`, as it does for NVIDIA's plugin.

Entries of lists are the exception there, and so they are here.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from gpuplugin.config.document import Document

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuplugin.config.document import KeyPath
    from gpuplugin.config.shape import Section


def canonical(document: Document, kind: type[Section]) -> Document:
    """The document with the section's spelling of its keys; lines stay with their values."""
    renamed: dict[KeyPath, KeyPath] = {}
    data = _renamed(_with_text_keys(document.data), kind, (), (), renamed)
    lines = {_moved(path, renamed): line for path, line in document.lines.items()}
    return Document(document.name, cast("Mapping[str, object]", data), MappingProxyType(lines))


def _with_text_keys(data: Mapping[str, object]) -> dict[str, object]:
    """YAML has numbers and booleans as keys; they become text, as in JSON."""
    return {str(key): _text_keys_within(value) for key, value in data.items()}


def _text_keys_within(value: object) -> object:
    if isinstance(value, dict):
        return _with_text_keys(value)
    return [_text_keys_within(item) for item in value] if isinstance(value, list) else value


def _renamed(
    data: Mapping[str, object],
    kind: type[Section],
    old: KeyPath,
    new: KeyPath,
    renamed: dict[KeyPath, KeyPath],
) -> dict[str, object]:
    keys = kind.keys
    spelling = {key.lower(): key for key in keys}
    result: dict[str, object] = {}
    for key, value in data.items():
        # An exact key wins over one in another case beside it.
        wanted = key if key in keys else spelling.get(str(key).lower(), key)
        name = key if wanted in data and wanted != key else wanted
        if name != key:
            renamed[*old, key] = (*new, name)
        inner = keys[name].form.section if name in keys else None
        if inner is not None and isinstance(value, dict):
            result[name] = _renamed(value, inner, (*old, key), (*new, name), renamed)
        else:
            result[name] = value
    return result


def _moved(path: KeyPath, renamed: Mapping[KeyPath, KeyPath]) -> KeyPath:
    for length in range(len(path), 0, -1):
        if (target := renamed.get(path[:length])) is not None:
            return (*target, *path[length:])
    return path
