"""The server's end of one HTTP/2 connection: what each frame does to streams, and when it ends.

Streams become calls in `calls`; sockets, threads and time belong to `engine_fast`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.kubelet.h2 import frames
from gpuplugin.kubelet.h2.calls import RECEIVE_WINDOW_BYTES, Calls, Stream
from gpuplugin.kubelet.h2.frames import ConnectionFault, ErrorCode, StreamFault
from gpuplugin.kubelet.h2.grpcwire import MAX_HEADERS_BYTES, PREFIX_BYTES, message_prefix, read_head
from gpuplugin.kubelet.h2.headers import MAX_LIST_BYTES, BlockReader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gpuplugin.kubelet.h2.calls import Method

MAX_STREAMS = 100
"""Open streams of one connection; more are refused, which gRPC clients take as "later"."""
PATIENCE = 2000
"""Frames of a second that may come without a call being answered or a list being sent."""
HELD_BACK_S = 1.0
"""After so long without a grant, a list may use up the window of the connection."""
_CONNECTION_WINDOW_BYTES = 2 * RECEIVE_WINDOW_BYTES
_GRANT_MORE_AT = _CONNECTION_WINDOW_BYTES // 2
_LAST_STREAM = 2**31 - 1
_LEAST_CALL_BYTES = 2 * frames.HEAD_BYTES + PREFIX_BYTES
_UNPACK = frames.HEAD.unpack_from

_GREETING = frames.settings(
    {
        frames.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
        frames.INITIAL_WINDOW_SIZE: RECEIVE_WINDOW_BYTES,
        frames.MAX_HEADER_LIST_SIZE: MAX_HEADERS_BYTES,
    }
) + frames.window_update(0, _CONNECTION_WINDOW_BYTES - frames.DEFAULT_WINDOW_BYTES)


class Connection:
    """One connection; not for several threads at a time.

    `wake` is called with a stream, from any thread, when its subscription has something to take:
    `pull` it then. `clock_s` is monotonic.
    """

    def __init__(
        self,
        methods: Mapping[bytes, Method],
        wake: Callable[[Stream], None],
        clock_s: Callable[[], float],
    ) -> None:
        self._clock_s = clock_s
        self._calls = Calls(methods, wake, clock_s)
        self._outbox = self._calls.outbox
        self._outbox.put(_GREETING)
        self._blocks = BlockReader(read_head)
        self._granted = _CONNECTION_WINDOW_BYTES
        self._rest = b""
        self._greeted = False
        self._settled = False
        self._block: bytearray | None = None
        self._block_of = (0, 0)
        self._last_id = 0
        self._patience = PATIENCE
        self._patient_since_s = clock_s()
        self._draining = False
        self._failed = False
        self._held_window = -1
        self._held_since_s = 0.0
        self._on = (
            self._on_data,
            self._on_headers,
            self._on_priority,
            self._on_rst_stream,
            self._on_settings,
            self._on_push_promise,
            self._on_ping,
            self._on_goaway,
            self._on_window_update,
            self._on_continuation,
        )

    @property
    def ended(self) -> bool:
        """True once the connection should be closed, after what is left was sent."""
        return self._failed or (self._draining and not self._calls.streams)

    @property
    def idle(self) -> bool:
        """True if no stream is open."""
        return not self._calls.streams

    @property
    def unfinished(self) -> bool:
        """True if the peer has begun something (a frame, a request) and not ended it."""
        begun = bool(self._rest) or self._block is not None or not self._settled
        return begun or any(one.waiting for one in self._calls.streams.values())

    @property
    def waiting_bytes(self) -> int:
        """Bytes of frames and answers that are not sent yet; lists are not counted."""
        return self._outbox.waiting_bytes

    def receive(self, data: bytes) -> None:
        """Take what the peer sent, calling handlers for requests that are complete."""
        if self._failed:
            return
        if self._rest:
            data = self._rest + data
        try:
            self._rest = data[self._read(data) :]
        except ConnectionFault as fault:
            self._fail(fault.code, fault.text)

    def output(self, limit_bytes: int) -> bytes:
        """What is to be sent now, with about `limit_bytes` of messages; call until it is empty."""
        return self._outbox.take(limit_bytes)

    def pull(self, stream: Stream) -> None:
        """Send what a stream's subscription has, unless a message of it is under way."""
        self._calls.pull(stream)

    def drain(self) -> None:
        """Tell the peer to open no more streams; `ended` once those that are open have ended."""
        if not self._draining and not self._failed:
            self._draining = True
            self._outbox.put(frames.goaway(self._last_id, ErrorCode.NO_ERROR))

    @property
    def next_deadline_s(self) -> float:
        """When the next call must have been answered, by the clock; infinity for never."""
        return self._calls.next_deadline_s

    def look_after(self) -> None:
        """End calls whose deadline has passed, and free a list that only the reserve holds back.

        To be called about every second, and at the next deadline.
        """
        now_s, window = self._clock_s(), self._outbox.window
        if not self._outbox.held_back or window != self._held_window:
            self._held_window, self._held_since_s = window, now_s
        elif now_s - self._held_since_s >= HELD_BACK_S:
            self._outbox.reserve = 0
        self._calls.expire()

    def close(self) -> None:
        """The connection is gone: end what belongs to it."""
        self._failed = True
        self._calls.close()
        self._rest = b""
        self._block = None

    def _read(self, data: bytes) -> int:
        """Act on the whole frames in `data`; returns where the rest begins."""
        at = 0
        if not self._greeted:
            if not data.startswith(frames.PREFACE):
                if frames.PREFACE.startswith(data):
                    return 0
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "not an HTTP/2 client")
            self._greeted = True
            at = len(frames.PREFACE)
        while end := self._whole_call(data, at) or self._frame(data, at):
            at = end
        return at

    def _frame(self, data: bytes, at: int) -> int:
        """Act on one frame; returns where the next begins, or 0 if this one is not whole yet."""
        found = frames.first(data, at)
        if found is None:
            return 0
        kind, flags, stream_id, payload, end = found
        if not self._settled or self._block is not None:
            self._check_order(kind)
        if kind > frames.CONTINUATION:
            self._lose_patience()
            return end
        try:
            self._on[kind](flags, stream_id, payload)
        except StreamFault as fault:
            self._calls.reset(fault.stream_id, fault.code)
        return end

    def _whole_call(self, data: bytes, at: int) -> int:
        """The short way for what a client sends most: HEADERS seen before and DATA that end it.

        Returns where the call ends; 0, with nothing done, if anything asks for the long way,
        which would do the same. A block that is known means that SETTINGS have come.
        """
        size = len(data)
        if size - at < _LEAST_CALL_BYTES or self._block is not None or self._draining:
            return 0
        high, low, kind, flags, stream_id = _UNPACK(data, at)
        body_at: int = at + frames.HEAD_BYTES + (high << 8 | low)
        message_at = body_at + frames.HEAD_BYTES + PREFIX_BYTES
        if kind != frames.HEADERS or flags != frames.END_HEADERS or message_at > size:
            return 0
        head = self._blocks.known(data[at + frames.HEAD_BYTES : body_at])
        if head is None or not head.plain or not self._last_id < stream_id <= _LAST_STREAM:
            return 0
        high, low, kind, flags, same_id = _UNPACK(data, body_at)
        length: int = high << 8 | low
        end: int = body_at + frames.HEAD_BYTES + length
        if kind != frames.DATA or flags != frames.END_STREAM or same_id != stream_id or end > size:
            return 0
        if length > frames.DEFAULT_FRAME_BYTES or self._granted - length < _GRANT_MORE_AT:
            return 0
        if data[message_at - PREFIX_BYTES : message_at] != message_prefix(end - message_at):
            return 0
        if not stream_id & 1 or len(self._calls.streams) >= MAX_STREAMS:
            return 0
        if not self._calls.whole(stream_id, head.path, data[message_at:end]):
            return 0
        self._last_id = stream_id
        self._granted -= length
        return end

    def _check_order(self, kind: int) -> None:
        if not self._settled and kind != frames.SETTINGS:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS must come first")
        if self._block is not None and kind != frames.CONTINUATION:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        # What comes is taken at once and more is granted, so the peer cannot send too much.
        self._granted -= len(payload)
        if self._granted < _GRANT_MORE_AT:
            self._outbox.put(frames.window_update(0, _CONNECTION_WINDOW_BYTES - self._granted))
            self._granted = _CONNECTION_WINDOW_BYTES
        stream = self._calls.streams.get(stream_id)
        if stream is None:
            self._check_known(stream_id)
            self._lose_patience()
            if not self._calls.was_reset(stream_id):
                raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED)
            return
        if stream.ended:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED)
        stream.granted -= len(payload)
        if flags & frames.PADDED:
            payload = frames.unpadded(flags, payload)
        if flags & frames.END_STREAM:
            stream.ended = True
        else:
            if not payload:
                self._lose_patience()
            if stream.granted < RECEIVE_WINDOW_BYTES // 2:
                more = RECEIVE_WINDOW_BYTES - stream.granted
                self._outbox.put(frames.window_update(stream_id, more))
                stream.granted = RECEIVE_WINDOW_BYTES
        self._calls.data(stream, payload)

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on no client's stream")
        if flags & (frames.PADDED | frames.HAS_PRIORITY):
            payload = frames.unpadded(flags, payload)
            payload = frames.without_priority(stream_id, flags, payload)
        if flags & frames.END_HEADERS:
            self._open(stream_id, flags, payload)
        else:
            self._block = bytearray(payload)
            self._block_of = (stream_id, flags)

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is None or stream_id != self._block_of[0]:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a CONTINUATION of nothing")
        self._lose_patience()
        self._block += payload
        if len(self._block) > MAX_LIST_BYTES:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too large a header block")
        if flags & frames.END_HEADERS:
            block, self._block = bytes(self._block), None
            self._open(stream_id, self._block_of[1], block)

    def _open(self, stream_id: int, flags: int, block: bytes) -> None:
        """A header block is complete: a new request, or the trailers of one."""
        head = self._blocks.read(block)  # always: the table of later blocks depends on it
        ended = bool(flags & frames.END_STREAM)
        stream = self._calls.streams.get(stream_id)
        if stream is not None:
            if stream.ended or not ended:
                raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR)
            stream.ended = True
            self._calls.data(stream, b"")
        elif stream_id <= self._last_id:
            if not self._calls.was_reset(stream_id):
                raise ConnectionFault(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream")
        else:
            self._last_id = stream_id
            if self._draining or len(self._calls.streams) >= MAX_STREAMS:
                raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM)
            if head.malformed:
                raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR)
            self._calls.begin(stream_id, head, ended=ended)

    def _on_priority(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY of the connection")
        self._lose_patience()
        if len(payload) != 5:
            raise StreamFault(stream_id, ErrorCode.FRAME_SIZE_ERROR)

    def _on_rst_stream(self, _flags: int, stream_id: int, payload: bytes) -> None:
        frames.read_u32(payload, "RST_STREAM")
        self._check_known(stream_id)
        self._lose_patience()
        stream = self._calls.streams.get(stream_id)
        if stream is not None:
            self._calls.drop(stream)

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS of a stream")
        self._lose_patience()
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ACK with a payload")
            return
        self._settled = True
        values = frames.read_settings(payload)
        if frames.INITIAL_WINDOW_SIZE in values:
            self._calls.resize_windows(values[frames.INITIAL_WINDOW_SIZE])
        self._outbox.put(frames.SETTINGS_ACK)

    def _on_push_promise(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING of a stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING of a wrong length")
        self._lose_patience()
        if not flags & frames.ACK:
            self._outbox.put(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _on_goaway(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY of a stream")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY of a wrong length")
        self._lose_patience()
        self.drain()

    def _on_window_update(self, _flags: int, stream_id: int, payload: bytes) -> None:
        more = frames.read_u32(payload, "WINDOW_UPDATE") & frames.LARGEST_WINDOW_BYTES
        self._lose_patience()
        if not stream_id:
            if not more:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
            self._outbox.widen(more)
            return
        self._check_known(stream_id)
        stream = self._calls.streams.get(stream_id)
        if stream is None:
            return
        if not more:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR)
        stream.widen(more)

    def _check_known(self, stream_id: int) -> None:
        """Raise for a frame on a stream that was never opened, or on none."""
        if not stream_id & 1 or stream_id > self._last_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a frame on idle stream {stream_id}")

    def _lose_patience(self) -> None:
        """Count a frame that leads to nothing by itself."""
        self._patience -= 1
        if self._patience > 0:
            return
        now_s = self._clock_s()
        if now_s - self._patient_since_s < 1 and not self._calls.progress:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames without progress")
        self._patient_since_s = now_s
        self._patience = PATIENCE
        self._calls.progress = False

    def _fail(self, code: ErrorCode, text: str) -> None:
        self._outbox.put(frames.goaway(self._last_id, code, text))
        self.close()
