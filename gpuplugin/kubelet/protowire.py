"""Fields of protocol buffers as bytes, for what is serialised in advance (proto3 encoding).

Messages concatenate, so a response is made of pieces. Requests are counted here and read by the
library (`requests`), which makes hundreds of bytes of an empty message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LENGTH_DELIMITED = 2
_ONE_BYTE = 0x80
_LENGTH_BITS = 32


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
