"""The server's end of one HTTP/2 connection: what each frame does to streams, and when it ends.

Streams become calls in `calls`; sockets, threads and time belong to `gpuplugin.rpc.fast`.
"""

from __future__ import annotations

import math
from struct import Struct
from typing import TYPE_CHECKING

from gpuplugin.rpc.h2 import frames, grpcwire
from gpuplugin.rpc.h2.flow import RESERVE_BYTES
from gpuplugin.rpc.h2.frames import ErrorCode, H2Error
from gpuplugin.rpc.h2.headers import MAX_LIST_BYTES, BlockReader
from gpuplugin.rpc.services import MAX_REQUEST_BYTES

if TYPE_CHECKING:
    from gpuplugin.rpc.h2.calls import ServerCalls

MAX_STREAMS = 100
"""Open streams of one connection; more are refused, which gRPC clients take as "later"."""
MAX_IDLE_FRAMES = 2000
"""Frames of a second that may come without a call being completed or a stream being served."""
HELD_BACK_S = 1.0
"""After so long without a grant, a list may use up the window of the connection."""
_STREAM_WINDOW_BYTES = 2 * MAX_REQUEST_BYTES
"""More than a request takes, so that no stream is granted more later, but for padding."""
_CONNECTION_WINDOW_BYTES = 8 * 1024 * 1024
_GRANT_MORE_AT = _CONNECTION_WINDOW_BYTES // 2
_LEAST_CALL_BYTES = 2 * frames.HEAD_BYTES + grpcwire.PREFIX_BYTES
_UNPACK = frames.HEAD.unpack_from
_ONE_MESSAGE = Struct(">BBIBI")
"""The head of a DATA frame after its length, and the prefix of a message that fills the frame."""
_OF_REQUESTS = (frames.DATA, frames.HEADERS, frames.RST_STREAM, frames.WINDOW_UPDATE)

_GREETING = frames.settings(
    {
        frames.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
        frames.INITIAL_WINDOW_SIZE: _STREAM_WINDOW_BYTES,
        frames.MAX_HEADER_LIST_SIZE: grpcwire.MAX_HEADERS_BYTES,
    }
) + frames.numbers(frames.WINDOW_UPDATE, 0, _CONNECTION_WINDOW_BYTES - frames.DEFAULT_WINDOW_BYTES)


class ServerConnection:
    """One connection, whose streams are `calls`; not for several threads at a time."""

    def __init__(self, calls: ServerCalls) -> None:
        self._calls = calls
        self._clock_s, self._outbox = calls.clock_s, calls.outbox
        self._outbox.put(_GREETING)
        self._blocks = BlockReader(grpcwire.read_head)
        self._granted = _CONNECTION_WINDOW_BYTES
        self._preface = frames.PREFACE
        self._only: int | None = frames.SETTINGS
        """The one type that the next frame may have, if there is such a rule."""
        self._rest = self._block = b""
        self._block_of = (0, 0)
        self._last_id = 0
        self._idle_frames_left = MAX_IDLE_FRAMES
        self._counted_since_s = self._held_since_s = self._clock_s()
        self._draining = self._failed = False
        self.acted = True
        """False if all that was received last were whole calls, whose responses are complete."""

    @property
    def ended(self) -> bool:
        """True once the connection should be closed, after what is left was sent."""
        return self._failed or (self._draining and not self._calls.streams)

    @property
    def unfinished(self) -> bool:
        """True if the peer has begun something (a frame, a request) and not ended it."""
        begun = bool(self._rest) or self._only is not None
        return begun or any(one.body is not None for one in tuple(self._calls.streams.values()))

    @property
    def timed(self) -> bool:
        """True if `check_time` may have to do anything, but for deadlines; else it can rest."""
        if self._rest or self._only is not None or self._outbox.unsent:
            return True
        return any(one.body is not None for one in tuple(self._calls.streams.values()))

    def receive(self, data: bytes) -> None:
        """Take what the peer sent, calling handlers for requests that are complete."""
        if self._failed:
            return
        data = self._rest + data
        self.acted = False
        try:
            at = self._greet(data) if self._preface else 0
            while at < len(data) and (end := self._whole_call(data, at) or self._frame(data, at)):
                at = end
            self._rest = data[at:]
            self.acted = self.acted or at < len(data) or self._outbox.unsent
        except H2Error as error:
            text = str(error)
            self._outbox.put(frames.numbers(frames.GOAWAY, 0, self._last_id, error.code, text=text))
            self.close()

    def drain(self) -> None:
        """Send GOAWAY: no more streams; `ended` once those that are open have ended."""
        if not self._draining and not self._failed:
            self._draining = True
            self._outbox.put(frames.numbers(frames.GOAWAY, 0, self._last_id, ErrorCode.NO_ERROR))

    def check_time(self) -> None:
        """End calls whose deadline has passed, and free a list that only the reserve holds back.

        To be called about every second while this is `timed`, and at the next deadline.
        """
        now_s = self._clock_s()
        if not self._outbox.held_back:
            self._held_since_s = now_s
        elif now_s - self._held_since_s >= HELD_BACK_S:
            self._outbox.reserve = 0
        self._calls.expire()

    def close(self) -> None:
        self._failed = True
        self._calls.close()
        self._rest = self._block = b""

    def _greet(self, data: bytes) -> int:
        """Take the preface, or what there is of it; returns where the rest begins."""
        begin = data[: len(self._preface)]
        if not self._preface.startswith(begin):
            raise H2Error(ErrorCode.PROTOCOL_ERROR, "not an HTTP/2 client")
        self._preface = self._preface[len(begin) :]
        return len(begin)

    def _whole_call(self, data: bytes, at: int) -> int:
        """The short way for what a client sends most: HEADERS seen before and DATA that end it.

        Returns where the call ends; 0, with nothing done, if anything requires the long way,
        which would do the same.
        """
        if self._only is not None or self._draining or len(data) - at < _LEAST_CALL_BYTES:
            return 0
        high, low, kind, flags, stream_id = _UNPACK(data, at)
        body_at: int = at + 9 + (high << 8 | low)
        head = self._blocks.seen.get(data[at + 9 : body_at])  # if it is, SETTINGS have come
        if kind != frames.HEADERS or flags != frames.END_HEADERS or head is None:
            return 0
        if head.refusal or head.timeout_s < math.inf or head.path not in self._calls.service.unary:
            return 0
        message_at = body_at + 9 + grpcwire.PREFIX_BYTES
        length = int.from_bytes(data[body_at : body_at + 3], "big")
        end = body_at + 9 + length
        numbers = (frames.DATA, frames.END_STREAM, stream_id, 0, end - message_at)
        if not message_at <= end <= len(data) or length > frames.DEFAULT_FRAME_BYTES:
            return 0
        if data[body_at + 3 : message_at] != _ONE_MESSAGE.pack(*numbers) or not stream_id & 1:
            return 0
        if not self._last_id < stream_id <= frames.MOST_31_BITS:
            return 0
        if self._granted - length < _GRANT_MORE_AT or len(self._calls.streams) >= MAX_STREAMS:
            return 0
        self._last_id = stream_id
        self._granted -= length
        self._calls.whole(stream_id, head.path, data[message_at:end])
        return end

    def _frame(self, data: bytes, at: int) -> int:
        """Act on one frame; returns where the next begins, or 0 if this one is not whole yet."""
        self.acted = True
        found = frames.first(data, at)
        if found is None:
            return 0
        kind, flags, stream_id, payload, end = found
        if self._only not in (None, kind):
            raise H2Error(ErrorCode.PROTOCOL_ERROR, f"type {kind} instead of type {self._only}")
        opened = stream_id & 1 and (stream_id <= self._last_id or kind == frames.HEADERS)
        if kind in _OF_REQUESTS and not opened and (stream_id or kind != frames.WINDOW_UPDATE):
            raise H2Error(ErrorCode.PROTOCOL_ERROR, f"type {kind} on stream {stream_id}")
        try:
            if kind > frames.HEADERS:
                self._count_idle_frame()
                frames.check(kind, stream_id, payload)
            self._act(kind, flags, stream_id, payload)
        except H2Error as error:
            if not stream_id or not error.stream_id:
                raise
            self._calls.reset(error.stream_id, error.code)
        return end

    def _act(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        match kind:
            case frames.DATA:
                self._on_data(flags, stream_id, payload)
            case frames.HEADERS | frames.CONTINUATION:
                self._on_headers(kind, flags, stream_id, payload)
            case frames.SETTINGS if not flags & frames.ACK:
                self._on_settings(payload)
            case frames.SETTINGS if payload:
                raise H2Error(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ACK with a payload")
            case frames.WINDOW_UPDATE:
                self._on_window_update(stream_id, payload)
            case frames.PING if not flags & frames.ACK:
                self._outbox.put(frames.frame(frames.PING, frames.ACK, 0, payload))
            case frames.GOAWAY:
                self.drain()
            case frames.RST_STREAM:
                self._calls.drop(stream_id)
            case frames.PUSH_PROMISE:
                raise H2Error(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        # What comes is taken at once and more is granted, so the peer cannot send too much.
        self._granted -= len(payload)
        if self._granted < _GRANT_MORE_AT:
            more = _CONNECTION_WINDOW_BYTES - self._granted
            self._outbox.put(frames.numbers(frames.WINDOW_UPDATE, 0, more))
            self._granted = _CONNECTION_WINDOW_BYTES
        stream = self._calls.streams.get(stream_id)
        if stream is None:
            self._count_idle_frame()
            if stream_id in self._calls.resets:
                return
        if stream is None or stream.ended:
            raise H2Error(ErrorCode.STREAM_CLOSED, "DATA on a closed stream", stream_id)
        padded_bytes, payload = len(payload), frames.unpadded(flags, payload)
        stream.ended = bool(flags & frames.END_STREAM)
        if (padding_bytes := padded_bytes - len(payload)) and not stream.ended:
            self._outbox.put(frames.numbers(frames.WINDOW_UPDATE, stream_id, padding_bytes))
        if not payload and not stream.ended:
            self._count_idle_frame()
        self._calls.data(stream, payload)

    def _on_headers(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """HEADERS or CONTINUATION: a piece of a header block."""
        if kind == frames.HEADERS:
            self._block_of, self._block = (stream_id, flags), b""
            payload = frames.header_block(flags, payload)
        elif self._only is None or stream_id != self._block_of[0]:
            raise H2Error(ErrorCode.PROTOCOL_ERROR, "a CONTINUATION of nothing")
        self._block += payload
        if len(self._block) > MAX_LIST_BYTES:
            raise H2Error(ErrorCode.ENHANCE_YOUR_CALM, "too large a header block")
        self._only = None if flags & frames.END_HEADERS else frames.CONTINUATION
        if self._only is None:
            self._open(*self._block_of)

    def _open(self, stream_id: int, flags: int) -> None:
        """A header block is complete: a new request, or the trailers of one."""
        head = self._blocks.read(self._block)  # always: the table of later blocks depends on it
        ended = bool(flags & frames.END_STREAM)
        stream = self._calls.streams.get(stream_id)
        if stream is not None:
            if stream.ended or not ended:
                raise H2Error(ErrorCode.PROTOCOL_ERROR, "HEADERS in a request", stream_id)
            stream.ended = True
            self._calls.data(stream, b"")
        elif stream_id <= self._last_id:
            if stream_id not in self._calls.resets:
                raise H2Error(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream")
        else:
            self._last_id = stream_id
            if self._draining or len(self._calls.streams) >= MAX_STREAMS:
                raise H2Error(ErrorCode.REFUSED_STREAM, "no more streams", stream_id)
            if head is None:
                raise H2Error(ErrorCode.PROTOCOL_ERROR, "malformed headers", stream_id)
            self._calls.begin(stream_id, head, ended=ended)

    def _on_settings(self, payload: bytes) -> None:
        self._only = None
        values = frames.read_settings(payload)
        if frames.INITIAL_WINDOW_SIZE in values:
            self._calls.resize_windows(values[frames.INITIAL_WINDOW_SIZE])
        self._outbox.put(frames.SETTINGS_ACK)

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        more = int.from_bytes(payload, "big") & frames.MOST_31_BITS
        window = self._calls.streams.get(stream_id) if stream_id else self._outbox
        if window is None:
            return
        if not more:
            raise H2Error(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing", stream_id)
        window.widen(more)
        if not stream_id:
            self._outbox.reserve = RESERVE_BYTES

    def _count_idle_frame(self) -> None:
        """Count a frame that leads to nothing by itself."""
        now_s = self._clock_s()
        if self._calls.progress or now_s - self._counted_since_s >= 1:
            self._idle_frames_left, self._counted_since_s = MAX_IDLE_FRAMES, now_s
            self._calls.progress = False
        self._idle_frames_left -= 1
        if not self._idle_frames_left:
            raise H2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many frames without progress")
