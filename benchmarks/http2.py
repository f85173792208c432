"""Frames of HTTP/2 (RFC 9113) and messages of gRPC as bytes. Connections are in `client`."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple

from hpack import Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER_BYTES = 9
DEFAULT_WINDOW_BYTES = 65_535
DEFAULT_FRAME_BYTES = 16_384
MESSAGE_PREFIX_BYTES = 5
LARGEST_WINDOW_BYTES = 2**31 - 1

_HEADER = Struct(">BHBBL")
_SETTING = Struct(">HL")
_NUMBER = Struct(">L")
_MESSAGE = Struct(">BL")

stream_bytes = _NUMBER.pack
"""A stream's number as it stands in the head of a frame; in every call, so without a wrapper."""


class Kind(IntEnum):
    """Types of frames."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Flag(IntFlag):
    """Flags of frames; ACK and END_STREAM are one bit."""

    NONE = 0
    ACK = 1
    END_STREAM = 1
    END_HEADERS = 4
    PADDED = 8
    PRIORITY = 32


class Setting(IntEnum):
    """Settings that matter here."""

    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5


class FrameHeader(NamedTuple):
    """The head of a frame; `length` is that of what follows, in bytes."""

    length: int
    kind: int
    flags: int
    stream_id: int


def frame(kind: Kind, flags: int, stream_id: int, body: bytes = b"") -> bytes:
    """A whole frame."""
    length = len(body)
    return _HEADER.pack(length >> 16, length & 0xFFFF, kind, flags, stream_id) + body


def frame_header(data: bytes | bytearray, at: int) -> FrameHeader:
    """The head at this place of `data`, which must have all nine bytes of it."""
    high, low, kind, flags, stream_id = _HEADER.unpack_from(data, at)
    return FrameHeader(high << 16 | low, kind, flags, stream_id & 0x7FFF_FFFF)


def settings(values: dict[Setting, int]) -> bytes:
    """A SETTINGS frame."""
    body = b"".join(_SETTING.pack(key, value) for key, value in values.items())
    return frame(Kind.SETTINGS, Flag.NONE, 0, body)


def read_settings(body: bytes) -> dict[int, int]:
    """What a SETTINGS frame says; the last value of a key counts."""
    return dict(_SETTING.iter_unpack(body))


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(Kind.WINDOW_UPDATE, Flag.NONE, stream_id, _NUMBER.pack(increment))


def number(body: bytes, at: int = 0) -> int:
    """A number of 32 bits, as RST_STREAM, WINDOW_UPDATE and GOAWAY have them."""
    found: int = _NUMBER.unpack_from(body, at)[0]
    return found


def message(payload: bytes) -> bytes:
    """A gRPC message without compression."""
    return _MESSAGE.pack(0, len(payload)) + payload


def message_length(data: bytes | bytearray) -> tuple[bool, int]:
    """Of the message that begins `data` (five bytes at least): compressed or not, and bytes."""
    compressed, length = _MESSAGE.unpack_from(data)
    return bool(compressed), length


def request_block(method: str) -> bytes:
    """The headers of a call of `/service/method`, so that no table of the server changes by it."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "gpuplugin-bench",
    }
    # Sensitive fields are literals that are never indexed: the block is the same for every call.
    return Encoder().encode([(*header, True) for header in headers.items()], huffman=False)


def leaves_tables_alone(block: bytes) -> bool:
    """True if reading a block of headers (RFC 7541) changes no table: it reads the same each time.

    A block that is cut, or written in a way that nobody writes, is called False.
    """
    at = 0
    while at < len(block):
        first = block[at]
        if 0x20 <= first < 0x80:
            return False  # a new entry, or a new size of the table
        name, at = _number(block, at, 7 if first >= 0x80 else 4)
        strings = 0 if first >= 0x80 else 1 if name else 2
        for _ in range(strings):
            if at >= len(block):
                return False
            length, at = _number(block, at, 7)
            at += length
    return at == len(block)


def _number(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """A number whose first byte has so many bits of it, and where the next thing begins."""
    most = (1 << bits) - 1
    number = block[at] & most
    at += 1
    if number < most:
        return number, at
    for shift, byte in enumerate(block[at : at + 4]):
        number += (byte & 0x7F) << (7 * shift)
        at += 1
        if byte < 0x80:
            return number, at
    return number, len(block) + 1  # longer than anything, or cut
