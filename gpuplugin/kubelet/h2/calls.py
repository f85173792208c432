"""The gRPC calls on one connection: from a stream's headers and data to a handler and its answer.

HTTP/2's rules about streams are kept by `connection`, which owns this.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, TypeAlias

from gpuplugin.kubelet.h2.flow import NOTHING, Outbox, Outgoing
from gpuplugin.kubelet.h2.frames import (
    DATA,
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW_BYTES,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    ConnectionFault,
    ErrorCode,
    StreamFault,
    frame,
    frame_head,
    rst_stream,
)
from gpuplugin.kubelet.h2.grpcwire import (
    ANSWER_BLOCK,
    OK_BLOCK,
    PREFIX_BYTES,
    message_prefix,
    read_message,
    refusal_block,
    trailers_block,
)
from gpuplugin.kubelet.rpc import RpcCode, RpcError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gpuplugin.kubelet.h2.grpcwire import Head
    from gpuplugin.kubelet.rpc import Subscription

RECEIVE_WINDOW_BYTES = 4 * 1024 * 1024
"""What a peer may send of one request before it is granted more: the largest ones need no wait."""
MAX_UNREAD_BYTES = 64 * 1024 * 1024
"""Incomplete requests of one connection, all together."""

_REMEMBERED_RESETS = 256
_DEADLINE_TEXT = "Deadline Exceeded"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unary:
    """A method that answers one message with one."""

    handler: Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Streaming:
    """A method whose answer is a subscription."""

    subscribe: Callable[[Callable[[], None]], Subscription]


Method: TypeAlias = Unary | Streaming


class Stream(Outgoing):
    """One open stream, which is one call."""

    __slots__ = (
        "body",
        "deadline_s",
        "ended",
        "granted",
        "headers_sent",
        "method",
        "path",
        "subscription",
        "waiting",
    )

    def __init__(self, stream_id: int, window: int, path: bytes, method: Method | None) -> None:
        super().__init__(stream_id, window, is_list=isinstance(method, Streaming))
        self.path = path
        self.method = method
        self.deadline_s = math.inf
        self.subscription: Subscription | None = None
        self.body = bytearray()
        self.granted = RECEIVE_WINDOW_BYTES
        """What the peer may send before it is granted more."""
        self.ended = False
        """True once the peer has sent its whole request."""
        self.waiting = True
        """True until the request's message is complete."""
        self.headers_sent = False


class Calls:
    """The open streams of one connection, what they have to send, and which were reset."""

    def __init__(
        self,
        methods: Mapping[bytes, Method],
        wake: Callable[[Stream], None],
        clock_s: Callable[[], float],
    ) -> None:
        self.streams: dict[int, Stream] = {}
        self.outbox = Outbox(self._sent)
        self.progress = False
        """True if a call was answered or a list was sent; whoever looks sets it back."""
        self._methods = methods
        self._wake = wake
        self._clock_s = clock_s
        self._initial_window = DEFAULT_WINDOW_BYTES
        self._unread_bytes = 0
        self._resets: dict[int, None] = {}

    def begin(self, stream_id: int, head: Head, *, ended: bool) -> None:
        """A request begins with these headers; it has no body if it `ended` with them."""
        method = self._methods.get(head.path)
        stream = self._open(stream_id, head.path, method, ended=ended)
        stream.deadline_s = self._clock_s() + head.timeout_s
        if head.refusal:
            self._end(stream, head.refusal)
        elif method is None:
            self._finish(stream, RpcCode.UNIMPLEMENTED, "Method not found!")
        elif ended:
            self.data(stream, b"")

    def whole(self, stream_id: int, path: bytes, request: bytes) -> bool:
        """A call came as a whole: the shortest way from its message to an answer in one piece.

        False, and nothing was done, if `path` is no unary method: `begin` and `data` see to it.
        """
        method = self._methods.get(path)
        if not isinstance(method, Unary):
            return False
        try:
            answer = method.handler(request)
        except Exception as error:  # noqa: BLE001 - looked at, and logged, there
            self._failed(self._open(stream_id, path, method, ended=True), error)
            return True
        size = PREFIX_BYTES + len(answer)
        if size > min(self.outbox.window, self._initial_window, DEFAULT_FRAME_BYTES):
            self._answer(self._open(stream_id, path, method, ended=True), answer)
        else:
            self.outbox.window -= size
            self.outbox.put(_answer_frames(stream_id, answer))
            self.progress = True
        return True

    def data(self, stream: Stream, payload: bytes) -> None:
        """More of a request came. The handler is called with its first message, as in grpcio."""
        if not stream.waiting:
            return
        body: bytes | bytearray = payload
        if stream.body:
            stream.body += payload
            self._unread_bytes += len(payload)
            body = stream.body
        try:
            message = read_message(body)
        except RpcError as error:
            self._finish(stream, error.code, error.message)
            return
        if message is not None:
            self._call(stream, message)
        elif stream.ended:
            text = f'"{stream.path!r}" requires exactly one request message.'
            self._finish(stream, RpcCode.UNIMPLEMENTED, text)
        elif body is payload:
            stream.body += payload
            self._unread_bytes += len(payload)
        if self._unread_bytes > MAX_UNREAD_BYTES:
            text = "too many incomplete requests"
            self._finish(stream, RpcCode.RESOURCE_EXHAUSTED, text)

    def pull(self, stream: Stream) -> None:
        """Send what a stream's subscription has, unless a message of it is under way."""
        subscription = stream.subscription
        if subscription is None or stream.rest:
            return
        try:
            closed = subscription.closed
            message = None if closed else subscription.take()
        except Exception as error:  # the peer is told, as in grpcio, and other calls go on
            log.exception("a subscription failed")
            self._finish(stream, RpcCode.UNKNOWN, f"Exception iterating responses: {error}")
            return
        if closed:
            self._finish(stream, RpcCode.OK, "")
        elif message is not None:
            if not stream.headers_sent:
                stream.headers_sent = True
                self.outbox.put(_headers(stream.stream_id, ANSWER_BLOCK, END_HEADERS))
            self.outbox.send(stream, message_prefix(len(message)) + message)

    @property
    def next_deadline_s(self) -> float:
        """The earliest deadline of the open calls; infinity if none has one."""
        if not self.streams:
            return math.inf
        return min(one.deadline_s for one in self.streams.values())

    def expire(self) -> None:
        """End the calls whose deadline has passed."""
        for stream in [one for one in self.streams.values() if self._expired(one)]:
            if stream.rest:  # a message that is cut off cannot be followed by trailers
                self.reset(stream.stream_id, ErrorCode.CANCEL)
            else:
                self._finish(stream, RpcCode.DEADLINE_EXCEEDED, _DEADLINE_TEXT)

    def resize_windows(self, size: int) -> None:
        """The peer changed what streams begin with, which counts for open ones as well.

        Raises:
            ConnectionFault: a window is larger than HTTP/2 allows now.
        """
        more, self._initial_window = size - self._initial_window, size
        for stream in self.streams.values():
            try:
                stream.widen(more)
            except StreamFault as fault:
                raise ConnectionFault(fault.code, "a window is too large") from fault

    def drop(self, stream: Stream) -> None:
        """A stream has ended; nothing more is sent on it."""
        if self.streams.pop(stream.stream_id, None) is None:
            return
        self.outbox.forget(stream)
        self._unread_bytes -= len(stream.body)
        stream.waiting = False
        stream.rest = NOTHING
        if stream.subscription is not None:
            stream.subscription.close()
            stream.subscription = None

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        """End a stream with RST_STREAM, whether it is open or not."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            self.drop(stream)
        if len(self._resets) >= _REMEMBERED_RESETS:
            del self._resets[next(iter(self._resets))]
        self._resets[stream_id] = None
        self.outbox.put(rst_stream(stream_id, code))

    def was_reset(self, stream_id: int) -> bool:
        """True for a stream that was reset here lately: its peer may not know yet."""
        return stream_id in self._resets

    def close(self) -> None:
        """End all streams without a word."""
        for stream in tuple(self.streams.values()):
            self.drop(stream)

    def _call(self, stream: Stream, request: bytes) -> None:
        stream.waiting = False
        method = stream.method
        try:
            if self._expired(stream):
                self._finish(stream, RpcCode.DEADLINE_EXCEEDED, _DEADLINE_TEXT)
            elif isinstance(method, Streaming):
                stream.subscription = method.subscribe(partial(self._wake, stream))
            elif method is not None:
                self._answer(stream, method.handler(request))
        except Exception as error:  # noqa: BLE001 - looked at, and logged, there
            self._failed(stream, error)

    def _failed(self, stream: Stream, error: Exception) -> None:
        """A handler raised: the peer is told, in grpcio's words, and other calls go on."""
        if isinstance(error, RpcError):
            self._finish(stream, error.code, error.message)
            return
        log.error(
            "the handler of %s failed", stream.path.decode("utf-8", "replace"), exc_info=error
        )
        doing = "iterating responses" if stream.is_list else "calling application"
        self._finish(stream, RpcCode.UNKNOWN, f"Exception {doing}: {error}")

    def _answer(self, stream: Stream, message: bytes) -> None:
        if self._expired(stream):
            self._finish(stream, RpcCode.DEADLINE_EXCEEDED, _DEADLINE_TEXT)
            return
        outbox, stream_id = self.outbox, stream.stream_id
        size = PREFIX_BYTES + len(message)
        if size > min(outbox.window, stream.window, DEFAULT_FRAME_BYTES):
            outbox.put(_headers(stream_id, ANSWER_BLOCK, END_HEADERS))
            trailers = _headers(stream_id, OK_BLOCK, END_HEADERS | END_STREAM)
            outbox.send(stream, message_prefix(len(message)) + message, trailers)
            return
        outbox.window -= size
        outbox.put(_answer_frames(stream_id, message))
        self._ended(stream)

    def _open(self, stream_id: int, path: bytes, method: Method | None, *, ended: bool) -> Stream:
        stream = Stream(stream_id, self._initial_window, path, method)
        stream.ended = ended
        self.streams[stream_id] = stream
        return stream

    def _sent(self, outgoing: Outgoing) -> None:
        """The outbox has sent the whole message of a stream."""
        stream = self.streams[outgoing.stream_id]
        self.progress = True
        if stream.is_list:
            self.pull(stream)
        else:
            self._ended(stream)

    def _finish(self, stream: Stream, code: int, text: str) -> None:
        """End a call with a status, if it was not ended before."""
        block = trailers_block if stream.headers_sent else refusal_block
        self._end(stream, block(code, text))

    def _end(self, stream: Stream, block: bytes) -> None:
        if stream.stream_id in self.streams:
            self.outbox.put(_headers(stream.stream_id, block, END_HEADERS | END_STREAM))
            self._ended(stream)

    def _ended(self, stream: Stream) -> None:
        """The answer is complete; a peer that still sends its request is told to stop."""
        self.progress = True
        self.drop(stream)
        if not stream.ended:
            self.reset(stream.stream_id, ErrorCode.NO_ERROR)

    def _expired(self, stream: Stream) -> bool:
        return self._clock_s() >= stream.deadline_s


_ANSWER_HEAD = Struct(f">5sI{len(ANSWER_BLOCK)}sHBBBIBI")
_ANSWER_END = Struct(f">5sI{len(OK_BLOCK)}s")
_HEADERS_START = frame_head(len(ANSWER_BLOCK), HEADERS, END_HEADERS, 0)[:5]
_TRAILERS_START = frame_head(len(OK_BLOCK), HEADERS, END_HEADERS | END_STREAM, 0)[:5]


def _answer_frames(stream_id: int, message: bytes) -> bytes:
    """A whole answer: headers, a message that fits in one frame, trailers."""
    size = PREFIX_BYTES + len(message)
    data_head = (size >> 8, size & 0xFF, DATA, 0, stream_id, 0, len(message))
    head = _ANSWER_HEAD.pack(_HEADERS_START, stream_id, ANSWER_BLOCK, *data_head)
    return head + message + _ANSWER_END.pack(_TRAILERS_START, stream_id, OK_BLOCK)


def _headers(stream_id: int, block: bytes, flags: int) -> bytes:
    return frame(HEADERS, flags, stream_id, block)
