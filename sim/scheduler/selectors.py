"""Selectors of devices: the part of CEL that DeviceClasses of GPU drivers are written in.

Comparisons joined by `&&`, of a device's driver, attributes, `allowMultipleAllocations`, and of
literals. Whatever else CEL has is refused by name, never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

Value: TypeAlias = str | int | bool

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<text>'[^'\\]*'|"[^"\\]*")
        | (?P<number>-?\d+(?![\w.]))
        | (?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)
        | (?P<sign>==|!=|&&|[!\[\].])
    )""",
    re.VERBOSE | re.ASCII,
)
_WORDS: Mapping[str, bool] = {"true": True, "false": False}


class UnsupportedSelector(Exception):
    """An expression beyond what is read here; the text says what it is."""


class SelectorFailed(Exception):
    """The expression asks for what the device does not have: an error in CEL as well."""


@dataclass(frozen=True, slots=True)
class Selectable:
    """What a selector sees of a device; attributes are by domain and name."""

    driver: str
    attributes: Mapping[str, Mapping[str, Value]]
    shared: bool


@dataclass(frozen=True, slots=True)
class _Literal:
    value: Value

    def of(self, _device: Selectable) -> Value:
        return self.value


@dataclass(frozen=True, slots=True)
class _Driver:
    def of(self, device: Selectable) -> Value:
        return device.driver


@dataclass(frozen=True, slots=True)
class _Shared:
    def of(self, device: Selectable) -> Value:
        return device.shared


@dataclass(frozen=True, slots=True)
class _Attribute:
    domain: str
    name: str

    def of(self, device: Selectable) -> Value:
        try:
            return device.attributes.get(self.domain, {})[self.name]
        except KeyError:
            raise SelectorFailed(f"no such key: {self.name}") from None


_Operand: TypeAlias = _Literal | _Driver | _Shared | _Attribute


@dataclass(frozen=True, slots=True)
class _Has:
    """`"name" in device.attributes["domain"]`."""

    domain: str
    name: str

    def holds(self, device: Selectable) -> bool:
        return self.name in device.attributes.get(self.domain, {})


@dataclass(frozen=True, slots=True)
class _Compared:
    left: _Operand
    right: _Operand
    equal: bool

    def holds(self, device: Selectable) -> bool:
        left, right = self.left.of(device), self.right.of(device)
        same = type(left) is type(right) and left == right
        return same is self.equal


_Term: TypeAlias = _Has | _Compared


@dataclass(frozen=True, slots=True)
class Selector:
    """All of the terms, from the left: a guard keeps what is behind it from failing."""

    terms: tuple[_Term, ...]

    def selects(self, device: Selectable) -> bool:
        """Raises `SelectorFailed`."""
        return all(term.holds(device) for term in self.terms)


@lru_cache(maxsize=256)
def parse(expression: str) -> Selector:
    """Raises `UnsupportedSelector`."""
    return _Parser(expression).parse()


class _Parser:
    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._tokens = list(self._split())

    def parse(self) -> Selector:
        terms = [self._term()]
        while self._tokens:
            self._expect("&&")
            terms.append(self._term())
        return Selector(tuple(terms))

    def _split(self) -> list[tuple[str, str]]:
        tokens, at, text = [], 0, self._expression.rstrip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None or found.lastgroup is None:
                raise self._unsupported(text[at:].strip())
            tokens.append((found.lastgroup, found[found.lastgroup]))
            at = found.end()
        return tokens

    def _term(self) -> _Term:
        wanted = True
        while self._next_is("!"):
            self._take()
            wanted = not wanted
        left = self._operand()
        if self._next_is("in"):
            self._take()
            domain = self._domain()
            if not isinstance(left, _Literal) or not isinstance(left.value, str) or not wanted:
                raise self._unsupported("in")
            return _Has(domain, left.value)
        if wanted and (self._next_is("==") or self._next_is("!=")):
            equal = self._take()[1] == "=="
            return _Compared(left, self._operand(), equal)
        return _Compared(left, _Literal(value=True), wanted)

    def _operand(self) -> _Operand:
        kind, text = self._take()
        match kind:
            case "text":
                return _Literal(text[1:-1])
            case "number":
                return _Literal(int(text))
            case "name" if text in _WORDS:
                return _Literal(_WORDS[text])
            case "name" if text == "device.driver":
                return _Driver()
            case "name" if text == "device.allowMultipleAllocations":
                return _Shared()
            case "name" if text == "device.attributes":
                return self._attribute(self._key())
        raise self._unsupported(text)

    def _attribute(self, domain: str) -> _Attribute:
        if self._next_is("["):
            return _Attribute(domain, self._key())
        self._expect(".")
        kind, name = self._take()
        if kind != "name" or "." in name:
            raise self._unsupported(name)
        return _Attribute(domain, name)

    def _domain(self) -> str:
        if self._take()[1] != "device.attributes":
            raise self._unsupported("in")
        return self._key()

    def _key(self) -> str:
        self._expect("[")
        kind, text = self._take()
        if kind != "text":
            raise self._unsupported(text)
        self._expect("]")
        return text[1:-1]

    def _expect(self, sign: str) -> None:
        text = self._take()[1]
        if text != sign:
            raise self._unsupported(text)

    def _next_is(self, text: str) -> bool:
        return bool(self._tokens) and self._tokens[0][1] == text

    def _take(self) -> tuple[str, str]:
        if not self._tokens:
            raise self._unsupported("its end")
        return self._tokens.pop(0)

    def _unsupported(self, what: str) -> UnsupportedSelector:
        return UnsupportedSelector(
            f"the simulated scheduler reads comparisons joined by &&, not {what!r}, in the "
            f"selector {self._expression!r}"
        )
