"""Keys in another case: `MigStrategy` counts as `migStrategy`, as it does for NVIDIA's plugin.

Entries of lists are the exception there, and so they are here.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from gpuplugin.config.document import Document
from gpuplugin.config.unknown import fields_by_key, model_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

    from gpuplugin.config.document import KeyPath


def canonical(document: Document, model: type[BaseModel]) -> Document:
    """The document with the model's spelling of its keys; lines stay with their values."""
    renamed: dict[KeyPath, KeyPath] = {}
    data = _renamed(document.data, model, (), (), renamed)
    lines = {_moved(path, renamed): line for path, line in document.lines.items()}
    return Document(document.name, cast("Mapping[str, object]", data), MappingProxyType(lines))


def _renamed(
    data: Mapping[str, object],
    model: type[BaseModel],
    old: KeyPath,
    new: KeyPath,
    renamed: dict[KeyPath, KeyPath],
) -> dict[str, object]:
    fields = fields_by_key(model)
    spelling = {key.lower(): key for key in fields}
    result: dict[str, object] = {}
    for key, value in data.items():
        # An exact key wins over one in another case beside it.
        wanted = key if key in fields else spelling.get(str(key).lower(), key)
        name = key if wanted in data and wanted != key else wanted
        if name != key:
            renamed[*old, key] = (*new, name)
        inner = model_of(fields[name]) if name in fields else None
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
