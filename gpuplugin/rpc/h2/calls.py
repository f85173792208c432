"""The gRPC calls on one connection: from a stream's headers and data to a handler and its response.

HTTP/2's rules about streams are kept by `connection`, which owns this.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING

from gpuplugin.rpc.h2 import frames, grpcwire
from gpuplugin.rpc.h2.flow import Outbox, Outgoing
from gpuplugin.rpc.h2.grpcwire import OK_BLOCK, PREFIX_BYTES, RESPONSE_BLOCK
from gpuplugin.rpc.services import RpcCode, RpcError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuplugin.rpc.h2.frames import ErrorCode
    from gpuplugin.rpc.h2.grpcwire import Head
    from gpuplugin.rpc.services import Service, Subscription

MAX_UNREAD_BYTES = 16 * 1024 * 1024
"""Incomplete requests of a server, all together."""

_REMEMBERED_RESETS = 256
_END = frames.END_HEADERS | frames.END_STREAM

_RESPONSE_START = frames.frame_head(len(RESPONSE_BLOCK), frames.HEADERS, frames.END_HEADERS, 0)[:5]
_RESPONSE = Struct(f">5sI{len(RESPONSE_BLOCK)}sHBBBIBI")
"""A HEADERS frame, the head of a DATA frame, and the prefix of the message that fills it."""

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True, kw_only=True)
class Stream(Outgoing):
    path: str
    ended: bool
    """True once the peer has sent its whole request."""
    deadline_s: float = math.inf
    subscription: Subscription | None = None
    body: bytearray | None = field(default_factory=bytearray)
    """The request as far as it has come; None once its message is complete."""
    lead: bytes = RESPONSE_BLOCK
    """The headers of the response until they are sent."""
    outcome: bytes | Exception | None = None
    """What a handler that ran elsewhere made of the request."""


def _here(run: Callable[[], None]) -> None:
    run()


class ServerCalls:
    """The open streams of one connection, what they have to send, and which were reset.

    `service` has methods by the whole path of a call. `wake` is called with a stream, from any
    thread, when its subscription has something to take: `pull` it then. `clock_s` is monotonic.
    `unread_bytes` are those of all connections of the server. `elsewhere` runs a handler that may
    wait, in another thread.
    """

    def __init__(
        self,
        service: Service,
        wake: Callable[[Stream], None],
        clock_s: Callable[[], float],
        unread_bytes: Callable[[], int] | None = None,
        elsewhere: Callable[[Callable[[], None]], None] = _here,
    ) -> None:
        self.streams: dict[int, Stream] = {}
        self.outbox = Outbox(self._sent)
        self.progress = False
        """True if a call was completed or a message was sent; the reader resets it."""
        self.resets: deque[int] = deque(maxlen=_REMEMBERED_RESETS)
        """Streams that were reset here lately: the peer may not know yet."""
        self.service = service
        self._wake = wake
        self._elsewhere = elsewhere
        self.clock_s = clock_s
        self._all_unread_bytes = unread_bytes or (lambda: self.unread_bytes)
        self._initial_window = frames.DEFAULT_WINDOW_BYTES

    @property
    def next_deadline_s(self) -> float:
        return min([one.deadline_s for one in tuple(self.streams.values())], default=math.inf)

    @property
    def unread_bytes(self) -> int:
        """What has come of requests that are incomplete."""
        return sum(len(one.body or b"") for one in tuple(self.streams.values()))

    def begin(self, stream_id: int, head: Head, *, ended: bool) -> None:
        """A request begins with these headers; it has no body if it `ended` with them."""
        stream = self._open(stream_id, head.path, ended=ended)
        stream.deadline_s = self.clock_s() + head.timeout_s
        if head.refusal:
            self._end(stream, head.refusal)
        elif head.path not in self.service.unary and not stream.is_list:
            self._finish(stream, RpcCode.UNIMPLEMENTED, "Method not found!")
        elif ended:
            self.data(stream, b"")

    def whole(self, stream_id: int, path: str, request: bytes) -> None:
        """A call of a handler came as a whole: the shortest way to a response in one piece."""
        if path in self.service.waiting:
            self._guarded(partial(self._start, request), self._open(stream_id, path, ended=True))
            return
        try:
            response = self.service.unary[path](request)
        except Exception as error:  # noqa: BLE001 - handled and logged there
            self._failed(self._open(stream_id, path, ended=True), error)
            return
        if not self._sent_at_once(stream_id, self._initial_window, response):
            self._respond(self._open(stream_id, path, ended=True), response)

    def data(self, stream: Stream, payload: bytes) -> None:
        """More of a request came. The handler is called with its first message, as in grpcio."""
        if stream.body is not None:
            stream.body += payload
            self._guarded(self._take, stream)

    def pull(self, stream: Stream) -> None:
        """Send what a stream's subscription has, unless a message of it is under way.

        Or the response of a handler that ran elsewhere, if the peer still waits for it.
        """
        if stream.outcome is not None:
            outcome, stream.outcome = stream.outcome, None
            if self.streams.get(stream.stream_id) is stream:
                self._guarded(partial(self._finish_with, outcome), stream)
        elif stream.subscription is not None and not stream.rest:
            self._guarded(self._pull, stream)

    def expire(self) -> None:
        for stream in tuple(self.streams.values()):
            self._guarded(self._check_deadline, stream)

    def resize_windows(self, size: int) -> None:
        """The peer changed the initial window of streams; raises `H2Error` if it is too large."""
        more, self._initial_window = size - self._initial_window, size
        for stream in self.streams.values():
            stream.widen(more)

    def drop(self, stream_id: int) -> None:
        stream = self.streams.pop(stream_id, None)
        self.outbox.forget(stream_id)
        if stream is not None and stream.subscription is not None:
            stream.subscription.close()
            stream.subscription = None

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        """End a stream with RST_STREAM, whether it is open or not."""
        self.drop(stream_id)
        self.resets.append(stream_id)
        self.outbox.put(frames.numbers(frames.RST_STREAM, stream_id, code))

    def close(self) -> None:
        for stream_id in tuple(self.streams):
            self.drop(stream_id)
        self._wake = lambda _: None
        self._all_unread_bytes = int

    def _open(self, stream_id: int, path: str, *, ended: bool) -> Stream:
        is_list = path in self.service.streams
        stream = Stream(stream_id, self._initial_window, is_list, path=path, ended=ended)
        self.streams[stream_id] = stream
        return stream

    def _guarded(self, act: Callable[[Stream], None], stream: Stream) -> None:
        try:
            act(stream)
        except Exception as error:  # noqa: BLE001 - handled and logged there
            self._failed(stream, error)

    def _failed(self, stream: Stream, error: Exception) -> None:
        """End a call with an error, one of a handler in grpcio's format; other calls go on."""
        if not isinstance(error, RpcError):
            log.error("the handler of %s failed", stream.path, exc_info=error)
            doing = "iterating responses" if stream.is_list else "calling application"
            error = RpcError(RpcCode.UNKNOWN, f"Exception {doing}: {error}")
        self._finish(stream, error.code, error.message)

    def _take(self, stream: Stream) -> None:
        message = grpcwire.read_message(stream.body or b"")
        if message is None:
            self._check_incomplete(stream)
            return
        stream.body = None
        self._check_deadline(stream)
        if stream.is_list:
            subscribe = self.service.streams[stream.path]
            stream.subscription = subscribe(partial(self._wake, stream))
        elif stream.path in self.service.waiting:
            self._start(message, stream)
        else:
            self._respond(stream, self.service.unary[stream.path](message))

    def _start(self, request: bytes, stream: Stream) -> None:
        """Call a handler elsewhere; what comes of it is pulled."""
        stream.body = None
        handler = self.service.unary[stream.path]

        def run() -> None:
            try:
                stream.outcome = handler(request)
            except Exception as error:  # noqa: BLE001 - handled and logged where it is pulled
                stream.outcome = error
            self._wake(stream)

        self._elsewhere(run)

    def _finish_with(self, outcome: bytes | Exception, stream: Stream) -> None:
        if isinstance(outcome, Exception):
            raise outcome
        self._respond(stream, outcome)

    def _check_incomplete(self, stream: Stream) -> None:
        if stream.ended:
            text = f'"{stream.path.encode()!r}" requires exactly one request message.'
            raise RpcError(RpcCode.UNIMPLEMENTED, text)
        if self._all_unread_bytes() > MAX_UNREAD_BYTES:
            raise RpcError(RpcCode.RESOURCE_EXHAUSTED, "too many incomplete requests")

    def _check_deadline(self, stream: Stream) -> None:
        if self.clock_s() >= stream.deadline_s:
            raise RpcError(RpcCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _pull(self, stream: Stream) -> None:
        if stream.subscription is None or stream.subscription.closed:
            self._finish(stream, RpcCode.OK, "")
        elif (message := stream.subscription.take()) is not None:
            self._send(stream, message)

    def _respond(self, stream: Stream, message: bytes) -> None:
        self._check_deadline(stream)
        if self._sent_at_once(stream.stream_id, stream.window, message):
            self._ended(stream)
        else:
            self._send(stream, message, _headers(stream.stream_id, OK_BLOCK, _END))

    def _send(self, stream: Stream, message: bytes, trailers: bytes = b"") -> None:
        if stream.lead:
            self.outbox.put(_headers(stream.stream_id, stream.lead, frames.END_HEADERS))
            stream.lead = b""
        self.outbox.send(stream, grpcwire.message_prefix(len(message)) + message, trailers)

    def _sent_at_once(self, stream_id: int, window: int, message: bytes) -> bool:
        """Send the whole response if it is one frame that the windows take."""
        size, outbox = PREFIX_BYTES + len(message), self.outbox
        if size > window or size > outbox.window or size > frames.DEFAULT_FRAME_BYTES:
            return False
        outbox.window -= size
        sizes = size >> 8, size & 0xFF, frames.DATA, 0, stream_id, 0, len(message)
        head = _RESPONSE.pack(_RESPONSE_START, stream_id, RESPONSE_BLOCK, *sizes)
        outbox.put(head + message + _headers(stream_id, OK_BLOCK, _END))
        self.progress = True
        return True

    def _sent(self, outgoing: Outgoing) -> None:
        """The outbox has sent the whole message of a stream."""
        stream = self.streams[outgoing.stream_id]
        self.progress = True
        if stream.is_list:
            self.pull(stream)
        else:
            self._ended(stream)

    def _finish(self, stream: Stream, code: int, text: str) -> None:
        """End a call with a status; a message that is cut off cannot be followed by one."""
        if stream.rest:
            self.reset(stream.stream_id, frames.ErrorCode.CANCEL)
        else:
            self._end(stream, stream.lead + grpcwire.status_block(code, text))

    def _end(self, stream: Stream, block: bytes) -> None:
        self.outbox.put(_headers(stream.stream_id, block, _END))
        self._ended(stream)

    def _ended(self, stream: Stream) -> None:
        """The response is complete; a stream whose request is not complete is reset."""
        self.progress = True
        if stream.ended:
            self.drop(stream.stream_id)
        else:
            self.reset(stream.stream_id, frames.ErrorCode.NO_ERROR)


def _headers(stream_id: int, block: bytes, flags: int) -> bytes:
    return frames.frame(frames.HEADERS, flags, stream_id, block)
