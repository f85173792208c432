"""YAML (or JSON) as data with the line of every value, so that an error can say where it is.

Scalars mean what they mean to NVIDIA's plugin, which reads with sigs.k8s.io/yaml (go-yaml 2).
"""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, cast

import yaml
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from gpuplugin.config.loaded import ConfigError, Problem
from gpuplugin.config.values import hint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list positions from the root of a document to a value."""

MAX_VALUES = 100_000
"""Values of a document, with aliases written out; a large configuration has some thousands."""
MAX_DEPTH = 100

_TAG = "tag:yaml.org,2002:"
_OCTAL = re.compile(r"[-+]?0[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Document:
    """The data of a file; `lines` gives the line (from 1) of every key and list entry.

    `texts` gives the first line of each text block (`|`). `blank` is true for a file with nothing
    in it but comments.
    """

    name: str
    data: Mapping[str, object]
    lines: Mapping[KeyPath, int]
    texts: Mapping[KeyPath, int] = field(default_factory=dict)
    blank: bool = False

    def where(self, path: KeyPath) -> str:
        """`name:line` of a value, or of the closest enclosing value that the file has."""
        for length in range(len(path), 0, -1):
            if (line := self.lines.get(path[:length])) is not None:
                return f"{self.name}:{line}"
        return self.name


def parse_document(text: str, name: str, before: int = 0) -> Document:
    """Read the only document; an empty one is valid and has no keys.

    Raises:
        ConfigError: as `parse_documents`, or there are several.
    """
    documents = parse_documents(text, name, before)
    if len(documents) > 1:
        where = documents[1].where(next(iter(documents[1].lines), ()))
        problem = "a second document begins here: there can be one only; remove the '---' before it"
        raise ConfigError([Problem(where, "", problem)])
    return documents[0] if documents else Document(name, {}, {}, blank=True)


def parse_documents(text: str, name: str, before: int = 0) -> tuple[Document, ...]:
    """Read all documents but empty ones; `before` are the lines of the file before the text.

    Raises:
        ConfigError: not YAML, a repeated key, or something else than mappings at the top.
    """
    line: int | None = None
    try:
        return tuple(_documents(_Loader(text), name, before))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else None
        problem = (error.problem or "not valid YAML") + hint(text.splitlines(), line or 0)
    except ReaderError as error:
        line = text.count("\n", 0, error.position)
        problem = f"the character #x{error.character:04x} is not allowed"
    except yaml.YAMLError as error:
        problem = f"not valid YAML: {error}"
    except RecursionError:
        problem = "nested too deeply"
    where = name if line is None else f"{name}:{before + line + 1}"
    raise ConfigError([Problem(where, "", problem)])


def _documents(loader: _Loader, name: str, before: int) -> Iterator[Document]:
    while loader.check_node():
        node = loader.get_node()
        if isinstance(node, yaml.ScalarNode) and node.tag == _TAG + "null":
            continue
        if not isinstance(node, yaml.MappingNode):
            raise _wrong(node, "must be a mapping of keys such as version and sharing")
        # The lines first: they refuse what would take for ever to make data of.
        collected = _Lines(before)
        collected.add(node, (), [])
        data = cast("dict[str, object]", loader.construct_document(node))
        yield Document(name, data, collected.lines, collected.texts)


class _Lines:
    """The lines of all values below a node; an alias stands for all that it names."""

    def __init__(self, before: int) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.texts: dict[KeyPath, int] = {}
        self._before = before
        self._left = iter(range(MAX_VALUES))

    def add(self, node: yaml.Node, path: KeyPath, parents: list[yaml.Node]) -> None:
        """Note what is below `node`, which is at `path`.

        Raises:
            ConstructorError: a key that is given twice, what aliases make endless, or so large or
                deep that reading it would fail.
        """
        if any(node is parent for parent in parents):
            raise _wrong(node, "a value contains itself")
        if next(self._left, None) is None:
            raise _wrong(node, "too many values; does it use YAML aliases within aliases?")
        if len(parents) > MAX_DEPTH:
            raise _wrong(node, "nested too deeply")
        if isinstance(node, yaml.ScalarNode) and node.style == "|":
            self.texts[path] = self._before + node.start_mark.line + 2
        for key, place, value in _inner(node):
            here = (*path, key)
            if here in self.lines:
                raise _wrong(place, f"the key {key!r} is given twice")
            self.lines[here] = self._before + place.start_mark.line + 1
            self.add(value, here, [*parents, node])


def _inner(node: yaml.Node) -> Iterator[tuple[str | int, yaml.Node, yaml.Node]]:
    """Key, its node and value of a mapping, whose keys are texts from here on; or of a list."""
    if isinstance(node, yaml.SequenceNode):
        yield from ((position, one, one) for position, one in enumerate(node.value))
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _wrong(key, "a key must be a word")
            if key.tag != _TAG + "merge":
                key.tag = _TAG + "str"
            yield key.value, key, value


def _wrong(node: yaml.Node | None, problem: str) -> ConstructorError:
    mark = node.start_mark if node else None
    return ConstructorError(problem=problem, problem_mark=mark)


def _words() -> Iterator[tuple[str, object]]:
    for words, value in (("y yes true on", True), ("n no false off", False), ("null", None)):
        for word in words.split():
            yield from ((one, value) for one in (word, word.capitalize(), word.upper()))
    for words, number in ((".inf +.inf", math.inf), ("-.inf", -math.inf), (".nan", math.nan)):
        for word in words.split():
            spellings = (word, word.replace("i", "I"), word.replace("nan", "NaN"), word.upper())
            yield from ((one, number) for one in spellings)
    yield from (("", None), ("~", None))


_WORDS = dict(_words())


def scalar(text: str) -> object:
    """What a plain scalar stands for: text, if it is no word and no number of go-yaml 2.

    There is no base 60, and a date is text. A leading 0 is octal, or decimal if there is an 8 or 9.
    """
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789" or not text.isascii():
        return text
    plain = text if text[0] == "." else text.replace("_", "")
    with suppress(ValueError):
        return int(plain, 8 if _OCTAL.fullmatch(plain) else 0)
    value = float(plain) if _FLOAT.fullmatch(plain) else math.inf
    return text if math.isinf(value) else value


class _Loader(yaml.SafeLoader):
    """The safe loader with go-yaml's scalars and tabs, and one error for what is not of its tag."""

    def scan_to_next_token(self) -> None:
        # JSON may be indented with tabs, and a tab may be behind a value; before a key it is wrong.
        super().scan_to_next_token()
        while self.peek() == "\t" and (self.flow_level or not self.allow_simple_key):
            self.forward()
            super().scan_to_next_token()

    def resolve(self, kind: type[yaml.Node], value: str | None, implicit: object) -> str:
        if kind is yaml.ScalarNode and value is not None and cast("tuple[bool, bool]", implicit)[0]:
            return _TAG + ("merge" if value == "<<" else _TAGS[type(scalar(value))])
        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return tag

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        kind = node.tag.removeprefix(_TAG)
        try:
            if kind not in _KINDS or not isinstance(node, yaml.ScalarNode):
                return super().construct_object(node, deep)
            value = scalar(node.value)
            if isinstance(value, _KINDS[kind]) and isinstance(value, bool) == (kind == "bool"):
                return float(cast("float", value)) if kind == "float" else value
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise _wrong(node, f"not a valid {kind}") from error
        raise _wrong(node, f"not a valid {kind}")


_TAGS = {bool: "bool", int: "int", float: "float", str: "str", type(None): "null"}
_KINDS: dict[str, type | tuple[type, ...]] = {
    "bool": bool,
    "int": int,
    "float": (int, float),
    "null": type(None),
}
