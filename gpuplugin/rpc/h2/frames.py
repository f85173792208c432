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

END_STREAM, END_HEADERS, PADDED, HAS_PRIORITY = 0x1, 0x4, 0x8, 0x20
ACK = 0x1

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = range(1, 4)
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = range(4, 7)

HEAD_BYTES = 9
DEFAULT_FRAME_BYTES = 16_384
"""The largest payload that a peer may send unless it was granted more, and the least it takes."""
DEFAULT_WINDOW_BYTES = 65_535
MOST_31_BITS = 2**31 - 1
"""The largest window, the last stream, and the mask of either."""

HEAD = Struct(">HBBBI")
"""Length (16 and 8 bits), type, flags, stream."""
U32 = Struct(">I")
_SETTING = Struct(">HI")
_OF_CONNECTION = (SETTINGS, PING, GOAWAY)
_LENGTHS = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_LEAST_GOAWAY_BYTES = 8


class ErrorCode(IntEnum):
    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class H2Error(Exception):
    """The peer broke a rule. That ends a stream by RST_STREAM, or the connection (0) by GOAWAY."""

    def __init__(self, code: ErrorCode, text: str, stream_id: int = 0) -> None:
        super().__init__(text)
        self.code = code
        self.stream_id = stream_id


def frame_head(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    return HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream_id)


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return frame_head(len(payload), kind, flags, stream_id) + payload


def settings(values: Mapping[int, int]) -> bytes:
    payload = b"".join(_SETTING.pack(key, value) for key, value in values.items())
    return frame(SETTINGS, 0, 0, payload)


SETTINGS_ACK = frame(SETTINGS, ACK, 0, b"")


def numbers(kind: int, stream_id: int, *values: int, text: str = "") -> bytes:
    """A WINDOW_UPDATE, RST_STREAM or GOAWAY frame; `text` is for debugging."""
    return frame(kind, 0, stream_id, b"".join(map(U32.pack, values)) + text.encode())


def first(data: bytes, start: int) -> tuple[int, int, int, bytes, int] | None:
    """The frame in `data` at `start`: type, flags, stream, payload, where the next one begins.

    None if it is not there as a whole.
    Raises H2Error (FRAME_SIZE_ERROR) for a frame that is longer than was ever allowed.
    """
    if len(data) - start < HEAD_BYTES:
        return None
    high, low, kind, flags, stream_id = HEAD.unpack_from(data, start)
    length = high << 8 | low
    if length > DEFAULT_FRAME_BYTES:
        raise H2Error(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
    end = start + HEAD_BYTES + length
    if end > len(data):
        return None
    return kind, flags, stream_id & MOST_31_BITS, data[start + HEAD_BYTES : end], end


def check(kind: int, stream_id: int, payload: bytes) -> None:
    """Raise `H2Error` for a length or a stream that the frame's type does not allow."""
    length = len(payload)
    if length != _LENGTHS.get(kind, length) or (kind == GOAWAY and length < _LEAST_GOAWAY_BYTES):
        ended_id = stream_id if kind == PRIORITY else 0
        raise H2Error(ErrorCode.FRAME_SIZE_ERROR, f"type {kind} of a wrong length", ended_id)
    if kind < WINDOW_UPDATE and bool(stream_id) == (kind in _OF_CONNECTION):
        raise H2Error(ErrorCode.PROTOCOL_ERROR, f"type {kind} on stream {stream_id}")


def unpadded(flags: int, payload: bytes) -> bytes:
    """The payload of a frame without its padding; raises `H2Error` for too much padding."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise H2Error(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


def header_block(flags: int, payload: bytes) -> bytes:
    """The block in a HEADERS frame, without padding and priority; raises `H2Error`."""
    payload = unpadded(flags, payload)
    if not flags & HAS_PRIORITY:
        return payload
    if len(payload) < 5:
        raise H2Error(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
    return payload[5:]


def read_settings(payload: bytes) -> dict[int, int]:
    """The values of a SETTINGS payload, unknown ones included; raises `H2Error` for bad ones."""
    if len(payload) % _SETTING.size:
        raise H2Error(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a wrong length")
    values = dict(_SETTING.iter_unpack(payload))
    if values.get(INITIAL_WINDOW_SIZE, 0) > MOST_31_BITS:
        raise H2Error(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is too large")
    size = values.get(MAX_FRAME_SIZE, DEFAULT_FRAME_BYTES)
    if not DEFAULT_FRAME_BYTES <= size < 2**24 or values.get(ENABLE_PUSH, 0) > 1:
        raise H2Error(ErrorCode.PROTOCOL_ERROR, "MAX_FRAME_SIZE or ENABLE_PUSH is out of range")
    return values
