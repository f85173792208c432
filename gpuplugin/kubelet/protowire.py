"""Protocol buffers as bytes (proto3 encoding), for the few small messages of the daemon.

Messages concatenate, so a response is made of pieces that are serialised in advance. The library
would take 3 MiB of memory for good, to read a few requests.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_VARINT, _FIXED64, _LENGTH_DELIMITED, _GROUP, _GROUP_END, _FIXED32 = range(6)
"""Types on the wire."""
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_ONE_BYTE = 0x80
_TAG_BITS = _LENGTH_BITS = 32
_NUMBER_BITS = 64
_HIGHEST_FIELD = 15
"""Of the messages that are read here; what has a higher number is passed over."""
_MOST_FIELDS = 1 << 17
"""Of a message: more than one that is valid has here, and read within some 50 ms."""
_DEEPEST_GROUP = 100
"""As with the library."""


def number(field: int, value: int) -> bytes:
    """A field of an integer or boolean, from 0 on; nothing for 0, which is the default."""
    return bytes([field << 3]) + varint(value) if value else b""


def text(field: int, value: str) -> bytes:
    """A field of text; nothing for an empty one, which is the default."""
    return message(field, value.encode()) if value else b""


def message(field: int, content: bytes) -> bytes:
    """A field of a message, or an item of a list; field numbers are below 16."""
    return bytes([field << 3 | _LENGTH_DELIMITED]) + varint(len(content)) + content


def entry(field: int, key: str, value: str) -> bytes:
    """An entry of a map from text to text, which has both, empty or not."""
    return message(field, message(1, key.encode()) + message(2, value.encode()))


def varint(value: int) -> bytes:
    """A number from 0 on, seven bits in each byte, the lowest first."""
    if value < len(_VARINTS):
        return _VARINTS[value]
    if value < _ONE_BYTE * _ONE_BYTE:
        return bytes((value & 0x7F | _ONE_BYTE, value >> 7))
    parts = bytearray()
    while value >= _ONE_BYTE:
        parts.append(value & 0x7F | _ONE_BYTE)
        value >>= 7
    parts.append(value)
    return bytes(parts)


_VARINTS: tuple[bytes, ...] = tuple(bytes([value]) for value in range(_ONE_BYTE))
_VARINTS = tuple(map(varint, range(1024)))
"""The lengths of nearly all that is serialised in a call."""


def parts(data: bytes, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Where each message or text of `data` lies, whatever its field; ends at what is none."""
    end = len(data) if end is None else min(end, len(data))
    at = begin
    while at < end and data[at] & 7 == _LENGTH_DELIMITED:
        at, length, shift = at + 1, 0, 0
        while at < end and shift < _LENGTH_BITS:
            byte = data[at]
            length |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < _ONE_BYTE:
                break
        yield at, at + length
        at += length


class NotAMessage(ValueError):
    """Bytes that are not what they should be; the text says why."""


class Received:
    """A message that was read: its fields by their numbers, which are below 16.

    A field that is not there has its default. Of a single one that is there several times the last
    counts, and one of another type is passed over, as are fields that nobody asks for.

    Raises:
        NotAMessage: also by the methods, for a text that is not UTF-8, and a message that is none.
    """

    def __init__(self, data: bytes) -> None:
        self._fields = _fields(data)

    def texts(self, field: int) -> list[str]:
        try:
            return [one.decode() for one in self._contents(field)]
        except UnicodeDecodeError as error:
            raise NotAMessage(f"field {field} is not UTF-8: {error}") from error

    def text(self, field: int) -> str:
        return (self.texts(field) or [""])[-1]

    def messages(self, field: int) -> list[Received]:
        return [Received(one) for one in self._contents(field)]

    def number(self, field: int) -> int:
        """From 0 on; a negative one is in two's complement, of 64 bits."""
        numbers = [one for one in self._fields.get(field, ()) if isinstance(one, int)]
        return numbers[-1] if numbers else 0

    def _contents(self, field: int) -> list[bytes]:
        return [one for one in self._fields.get(field, ()) if isinstance(one, bytes)]


def _fields(data: bytes) -> dict[int, list[int | bytes]]:
    """The numbers and contents of the fields of a message; what is in groups is passed over."""
    found: dict[int, list[int | bytes]] = {}
    groups: list[int] = []
    at, size, left = 0, len(data), _MOST_FIELDS
    value: int | bytes
    while at < size:
        left -= 1
        if not left:
            raise NotAMessage(f"it has more than {_MOST_FIELDS} fields")
        tag, at = _varint_at(data, at, _TAG_BITS)
        field, kind = tag >> 3, tag & 7
        if not field and not groups:  # the library does not mind one in a group
            raise NotAMessage("a field has the number 0")
        if kind == _LENGTH_DELIMITED:
            length, at = _varint_at(data, at, _LENGTH_BITS)
            value = data[at : at + length]
            at += length
        elif kind == _VARINT:
            value, at = _varint_at(data, at, _NUMBER_BITS)
        else:
            at += _passed_over(field, kind, groups)
            continue
        if field <= _HIGHEST_FIELD and not groups:
            found.setdefault(field, []).append(value)
    if at > size or groups:
        raise NotAMessage("it ends early")
    return found


def _passed_over(field: int, kind: int, groups: list[int]) -> int:
    """The bytes of a field of no use here; `groups` are the open ones, the innermost last."""
    if kind == _GROUP and len(groups) < _DEEPEST_GROUP:
        groups.append(field)
    elif kind not in _FIXED_BYTES and not (kind == _GROUP_END and groups and groups.pop() == field):
        raise NotAMessage(f"field {field} cannot have the type {kind}")
    return _FIXED_BYTES.get(kind, 0)


def _varint_at(data: bytes, at: int, most_bits: int) -> tuple[int, int]:
    """The number at a place, and the place behind it."""
    value = shift = 0
    while at < len(data) and shift < most_bits:
        byte = data[at]
        at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
        if byte < _ONE_BYTE:
            if most_bits == _NUMBER_BITS:
                return value & ((1 << _NUMBER_BITS) - 1), at
            if value >> most_bits:
                break
            return value, at
    raise NotAMessage("a number ends early, or is too large")
