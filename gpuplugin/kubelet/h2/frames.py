"""HTTP/2 frames (RFC 9113, sections 4 and 6): their numbers, how they are written and taken apart.

What a frame means for a connection is not decided here but in `connection`.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(5, 10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = range(1, 4)
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = range(4, 7)

HEAD_BYTES = 9
DEFAULT_FRAME_BYTES = 16_384
"""The largest payload that a peer may send unless it was told otherwise, and the least it takes."""
LARGEST_FRAME_BYTES = 2**24 - 1
DEFAULT_WINDOW_BYTES = 65_535
LARGEST_WINDOW_BYTES = 2**31 - 1

HEAD = Struct(">HBBBI")
"""Length (16 and 8 bits), type, flags, stream."""
U32 = Struct(">I")
_SETTING = Struct(">HI")
_STREAM_MASK = 0x7FFF_FFFF


class ErrorCode(IntEnum):
    """Error codes (RFC 9113, section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class ConnectionFault(Exception):
    """The peer broke a rule that ends the connection; `code` goes into the GOAWAY."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class StreamFault(Exception):
    """The peer broke a rule that ends one stream; `code` goes into the RST_STREAM."""

    def __init__(self, stream_id: int, code: ErrorCode) -> None:
        super().__init__(f"stream {stream_id}: {code.name}")
        self.stream_id = stream_id
        self.code = code


def frame_head(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """The nine bytes before a payload of `length` bytes."""
    return HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream_id)


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """A whole frame."""
    return frame_head(len(payload), kind, flags, stream_id) + payload


def settings(values: Mapping[int, int]) -> bytes:
    """A SETTINGS frame."""
    payload = b"".join(_SETTING.pack(key, value) for key, value in values.items())
    return frame(SETTINGS, 0, 0, payload)


SETTINGS_ACK = frame(SETTINGS, ACK, 0, b"")


def window_update(stream_id: int, more_bytes: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, U32.pack(more_bytes))


def rst_stream(stream_id: int, code: ErrorCode) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, U32.pack(code))


def goaway(last_stream_id: int, code: ErrorCode, text: str = "") -> bytes:
    """A GOAWAY frame; `text` is for whoever debugs the peer."""
    payload = U32.pack(last_stream_id) + U32.pack(code) + text.encode()
    return frame(GOAWAY, 0, 0, payload)


def first(data: bytes, start: int) -> tuple[int, int, int, bytes, int] | None:
    """The frame in `data` at `start`: type, flags, stream, payload, where the next one begins.

    None if it is not there as a whole.

    Raises:
        ConnectionFault: FRAME_SIZE_ERROR for a frame that is longer than was ever allowed.
    """
    if len(data) - start < HEAD_BYTES:
        return None
    high, low, kind, flags, stream_id = HEAD.unpack_from(data, start)
    length = high << 8 | low
    if length > DEFAULT_FRAME_BYTES:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
    end = start + HEAD_BYTES + length
    if end > len(data):
        return None
    return kind, flags, stream_id & _STREAM_MASK, data[start + HEAD_BYTES : end], end


def unpadded(flags: int, payload: bytes) -> bytes:
    """The payload of a DATA or HEADERS frame without its padding.

    Raises:
        ConnectionFault: PROTOCOL_ERROR if the padding is longer than the payload.
    """
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


def without_priority(stream_id: int, flags: int, payload: bytes) -> bytes:
    """The header block of a HEADERS payload, without the priority that nobody uses any more.

    Raises:
        ConnectionFault: FRAME_SIZE_ERROR for a payload too short for it, PROTOCOL_ERROR for a
            stream that depends on itself.
    """
    if not flags & HAS_PRIORITY:
        return payload
    if len(payload) < 5:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
    if U32.unpack_from(payload)[0] & _STREAM_MASK == stream_id:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream depends on itself")
    return payload[5:]


def read_settings(payload: bytes) -> dict[int, int]:
    """The values of a SETTINGS payload, unknown ones included.

    Raises:
        ConnectionFault: a payload of a wrong length, or a value outside its range.
    """
    if len(payload) % _SETTING.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a wrong length")
    values = dict(_SETTING.iter_unpack(payload))
    if values.get(ENABLE_PUSH, 0) > 1:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
    if values.get(INITIAL_WINDOW_SIZE, 0) > LARGEST_WINDOW_BYTES:
        raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is too large")
    size = values.get(MAX_FRAME_SIZE, DEFAULT_FRAME_BYTES)
    if not DEFAULT_FRAME_BYTES <= size <= LARGEST_FRAME_BYTES:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of range")
    return values


def read_u32(payload: bytes, kind: str) -> int:
    """The number that is the whole payload of a RST_STREAM or WINDOW_UPDATE.

    Raises:
        ConnectionFault: FRAME_SIZE_ERROR if there are not exactly four bytes.
    """
    if len(payload) != U32.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"{kind} of a wrong length")
    value: int = U32.unpack(payload)[0]
    return value
