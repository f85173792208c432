"""Configurations inside other documents: a ConfigMap, a ClusterPolicy, values of a Helm chart.

They are what people copy; the plugin itself reads the text that is in them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gpuplugin.config.document import Document, parse_document
from gpuplugin.config.loaded import ConfigError, Problem
from gpuplugin.config.problems import dotted
from gpuplugin.config.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpuplugin.config.document import KeyPath

EXTENSION = "x-"
"""Keys at the top that begin so are the user's own, for example for YAML anchors."""
TOP_KEYS = tuple(name for name in Settings.model_fields if name != "daemon")
_LOOKS_LIKE_ONE = re.compile(rf"^\W*({'|'.join(TOP_KEYS)})\W*:", re.MULTILINE)


def entries(document: Document) -> dict[KeyPath, str]:
    """The texts within a document that look like configurations, by their paths."""
    return {path: text for path, text in _texts(document.data, ()) if _LOOKS_LIKE_ONE.search(text)}


def _texts(value: object, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield path, value
    inner: dict[str | int, object] = {}
    if isinstance(value, dict):
        inner = {key: one for key, one in value.items() if path or not key.startswith(EXTENSION)}
    elif isinstance(value, list):
        inner = dict(enumerate(value))
    for key, one in inner.items():
        yield from _texts(one, (*path, key))


def entry(document: Document, path: KeyPath, text: str) -> Document:
    """An entry as a document of its own, with the lines of the whole file.

    Raises:
        ConfigError: as `parse_document`.
    """
    if (line := document.texts.get(path)) is not None:
        return parse_document(text, document.name, line - 1)
    try:  # a text in quotes: all of it is where its key is
        return Document(document.where(path), parse_document(text, "").data, {})
    except ConfigError as error:
        where = document.where(path)
        problems = [Problem(where, one.key, one.message) for one in error.problems]
        raise ConfigError(problems) from None


def contains_one(document: Document) -> bool:
    """True for an object of Kubernetes, and for what has configurations within and is none."""
    if _is_object(document):
        return True
    # Values of a Helm chart have `resources`, too.
    is_one = any(name.lower() in TOP_KEYS and name != "resources" for name in document.data)
    return not is_one and bool(entries(document))


def _is_object(document: Document) -> bool:
    return isinstance(document.data.get("kind"), str) and "apiVersion" in document.data


def why_none(document: Document) -> Problem | None:
    """Why a document is no configuration but something else, if it is so."""
    names = [key for key in document.data if not key.startswith(EXTENSION)]
    is_known = any(name.lower() in TOP_KEYS for name in names)
    if contains_one(document):
        within = [f"{dotted(path)}{_line(document, path)}" for path in entries(document)]
        text = "this is no configuration, it contains one"
        if _is_object(document):
            text = f"this is a {document.data['kind']}"
        if within:
            text += f"; the configuration is under {', '.join(within)}: use that text alone"
        else:
            text += ", and has no configuration in it"
    elif is_known or not document.data:
        return None
    else:
        some = ", ".join(names[:5]) or "none"
        text = f"no key of a configuration ({', '.join(TOP_KEYS)}) is at the top; found {some}"
    return Problem(document.name, "", text)


def _line(document: Document, path: KeyPath) -> str:
    line = document.where(path).removeprefix(document.name).lstrip(":")
    return f" (line {line})" if line else ""
