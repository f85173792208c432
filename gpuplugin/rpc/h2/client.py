"""The client's end of one HTTP/2 connection: calls under way, their responses, and its own end.

Any server's frames are read, in any split: every server costs the caller the same. Sockets and
time belong to `gpuplugin.rpc.client`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote

from gpuplugin.rpc.h2 import frames
from gpuplugin.rpc.h2.flow import Outbox, Outgoing
from gpuplugin.rpc.h2.frames import ErrorCode, H2Error
from gpuplugin.rpc.h2.grpcwire import PREFIX_BYTES, message_prefix
from gpuplugin.rpc.h2.headers import MAX_LIST_BYTES, NO_TABLE, BlockReader, plain_block
from gpuplugin.rpc.services import RpcCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuplugin.rpc.h2.headers import Header

_NOT_ONE = "the response is not one uncompressed message"


class CallFailed(Exception):
    """A call without a response: the gRPC status code (a number) and the server's message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{_name(code)}: {message}")
        self.code = code
        self.message = message


class ConnectionFailed(CallFailed):
    """The connection ended, or is of no more use; no other call can be made on it."""


def _name(code: int) -> str:
    try:
        return RpcCode(code).name
    except ValueError:
        return f"code {code}"


@dataclass(frozen=True, slots=True)
class Method:
    """`/package.Service/Method` with its request headers, encoded once for all calls."""

    name: str
    block: bytes
    _lead: bytes
    _layout: Struct
    """A HEADERS frame, the head of a DATA frame, and the prefix of the message that fills it."""

    @classmethod
    def of(cls, name: str, timeout_s: float | None = None) -> Self:
        """`timeout_s` is sent to the server as the deadline of the call."""
        headers = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", name.encode()),
            (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        ]
        if timeout_s is not None:
            headers.append((b"grpc-timeout", write_timeout(timeout_s)))
        block = NO_TABLE + plain_block(headers)
        lead = frames.frame_head(len(block), frames.HEADERS, frames.END_HEADERS, 0)[:5]
        return cls(name, block, lead, Struct(f">5sI{len(block)}sHBBBIBI"))

    def whole_call(self, stream_id: int, request: bytes) -> bytes:
        """The frames of a call whose request fits one DATA frame."""
        size = PREFIX_BYTES + len(request)
        sizes = size >> 8, size & 0xFF, frames.DATA, frames.END_STREAM, stream_id, 0, len(request)
        return self._layout.pack(self._lead, stream_id, self.block, *sizes) + request


@dataclass(eq=False, slots=True)
class ClientCall(Outgoing):
    """A call: its responses so far, and how it ended. One that is not `streaming` has one."""

    streaming: bool = False
    responses: list[bytes] = field(default_factory=list)
    ended: bool = False
    error: CallFailed | None = None
    """Why it failed; None while it is under way, and after status OK."""
    received_bytes: int = 0
    pieces: list[bytes] = field(default_factory=list)
    missing_bytes: int = 0

    def result(self) -> bytes:
        """The response of a unary call that has ended; raises `CallFailed` for an error status."""
        if self.error is not None:
            raise self.error
        return self.responses[0]

    def feed(self, data: bytes, max_response_bytes: int) -> None:
        """Add data; long messages are joined once. Raises `CallFailed` for what is not accepted."""
        if self.pieces:
            self.pieces.append(data)
            self.missing_bytes -= len(data)
            if self.missing_bytes > 0:
                return
            data = b"".join(self.pieces)
            self.pieces.clear()
        while data:
            end = PREFIX_BYTES
            if len(data) >= PREFIX_BYTES:
                end += int.from_bytes(data[1:PREFIX_BYTES], "big")
                if data[0] or (self.responses and not self.streaming):
                    raise CallFailed(RpcCode.INTERNAL, _NOT_ONE)
                if end > PREFIX_BYTES + max_response_bytes:
                    raise CallFailed(RpcCode.RESOURCE_EXHAUSTED, "too large a response")
            if len(data) < end:
                self.pieces.append(data)
                self.missing_bytes = end - len(data)
                return
            self.responses.append(data[PREFIX_BYTES:end])
            data = data[end:]


class ClientConnection:
    """Calls on one connection as bytes in, bytes out: send what `output` gives, `receive` the rest.

    Not for several threads at a time.
    """

    def __init__(self, max_response_bytes: int) -> None:
        self._max_response_bytes = max_response_bytes
        self._window_bytes = max(2 * max_response_bytes, frames.DEFAULT_WINDOW_BYTES)
        """What a stream may receive before it is granted more: a whole response at least."""
        self._calls: dict[int, ClientCall] = {}
        self._ended: list[ClientCall] = []
        self._failure: ConnectionFailed | None = None
        self._next_id = 1
        self._outbox = Outbox(lambda _: None)
        self._initial_window = frames.DEFAULT_WINDOW_BYTES
        self._blocks = BlockReader(lambda headers: (read_status(headers),))
        self._rest = b""
        self._block = b""
        self._block_of: tuple[int, int] | None = None
        """Stream and flags of a header block that is not whole yet."""
        self._received_bytes = 0
        settings = {frames.ENABLE_PUSH: 0, frames.INITIAL_WINDOW_SIZE: self._window_bytes}
        self._outbox.put(frames.PREFACE + frames.settings(settings))
        self._outbox.put(frames.numbers(frames.WINDOW_UPDATE, 0, self._window_bytes))

    def start(self, method: Method, request: bytes, *, streaming: bool = False) -> ClientCall:
        """Begin a call; raises `ConnectionFailed` if the connection accepts no more calls."""
        if self._failure is not None:
            raise self._failure
        stream_id = self._next_id
        self._next_id += 2
        outbox, size = self._outbox, PREFIX_BYTES + len(request)
        call = ClientCall(stream_id, self._initial_window, streaming=streaming)
        self._calls[stream_id] = call
        if size <= min(outbox.window, call.window, frames.DEFAULT_FRAME_BYTES):
            outbox.window -= size
            call.window -= size
            outbox.put(method.whole_call(stream_id, request))
        else:
            outbox.put(frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, method.block))
            end = frames.frame(frames.DATA, frames.END_STREAM, stream_id, b"")
            outbox.send(call, message_prefix(len(request)) + request, end)
        return call

    def cancel(self, call: ClientCall) -> None:
        if not call.ended:
            self._fail(call, CallFailed(RpcCode.CANCELLED, "cancelled"))

    def output(self) -> bytes:
        return self._outbox.take(frames.MOST_31_BITS)

    def receive(self, data: bytes) -> list[ClientCall]:
        """Take what the server sent; no bytes mean that it has closed the connection.

        Returns the calls that have ended by it, but for streaming ones.
        Raises ConnectionFailed if the connection has ended, and all calls with it.
        """
        if not data:
            raise self._failed(RpcCode.UNAVAILABLE, "the server closed the connection")
        if self._rest:
            data = self._rest + data
        at = 0
        try:
            while (found := frames.first(data, at)) is not None:
                kind, flags, stream_id, payload, at = found
                self._take(kind, flags, stream_id, payload)
        except H2Error as error:
            text = f"the server broke HTTP/2: {error}"
            raise self._failed(RpcCode.INTERNAL, text) from error
        self._rest = data[at:]
        ended, self._ended = self._ended, []
        return ended

    def _failed(self, code: int, text: str) -> ConnectionFailed:
        """End all calls. Responses that came whole before are kept by their calls."""
        self._failure = ConnectionFailed(code, text)
        for call in tuple(self._calls.values()):
            self._end(call, self._failure)
        return self._failure

    def _take(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind > frames.HEADERS or not stream_id:
            frames.check(kind, stream_id, payload)
        if self._block_of and (kind != frames.CONTINUATION or stream_id != self._block_of[0]):
            raise H2Error(ErrorCode.PROTOCOL_ERROR, f"type {kind} in a header block")
        if kind == frames.DATA:
            self._on_data(flags, stream_id, payload)
        elif kind == frames.HEADERS:
            self._block, self._block_of = b"", (stream_id, flags)
            self._on_headers(flags, frames.header_block(flags, payload))
        elif kind == frames.CONTINUATION:
            self._on_headers(flags, payload)
        else:
            self._on_other(kind, flags, stream_id, payload)

    def _on_other(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        match kind:
            case frames.RST_STREAM:
                self._on_reset(stream_id, int.from_bytes(payload, "big"))
            case frames.GOAWAY:
                self._on_goaway(payload)
            case frames.WINDOW_UPDATE:
                window = self._calls.get(stream_id) if stream_id else self._outbox
                if window is not None:
                    window.widen(int.from_bytes(payload, "big") & frames.MOST_31_BITS)
            case frames.SETTINGS if not flags & frames.ACK:
                self._on_settings(payload)
            case frames.PING if not flags & frames.ACK:
                self._outbox.put(frames.frame(frames.PING, frames.ACK, 0, payload))
            case frames.PUSH_PROMISE:
                raise H2Error(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, which was switched off")

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._received_bytes += size
        if self._received_bytes > self._window_bytes // 2:
            self._outbox.put(frames.numbers(frames.WINDOW_UPDATE, 0, self._received_bytes))
            self._received_bytes = 0
        call = self._calls.get(stream_id)
        if call is None:
            return
        call.received_bytes += size
        if call.received_bytes > self._window_bytes // 2:
            more = frames.numbers(frames.WINDOW_UPDATE, stream_id, call.received_bytes)
            self._outbox.put(more)
            call.received_bytes = 0
        try:
            call.feed(frames.unpadded(flags, payload), self._max_response_bytes)
        except CallFailed as error:
            self._fail(call, error)
            return
        if flags & frames.END_STREAM:
            self._end(call, CallFailed(RpcCode.INTERNAL, "the response ended without a status"))

    def _on_headers(self, flags: int, piece: bytes) -> None:
        """A piece of a header block, which is read when it is whole: later ones depend on it."""
        block = self._block + piece
        if len(block) > MAX_LIST_BYTES:
            raise H2Error(ErrorCode.ENHANCE_YOUR_CALM, "too large a header block")
        if self._block_of is None:
            raise H2Error(ErrorCode.PROTOCOL_ERROR, "a CONTINUATION of nothing")
        if not flags & frames.END_HEADERS:
            self._block = block
            return
        (stream_id, first_flags), self._block_of = self._block_of, None
        (status,) = self._blocks.read(block)
        call = self._calls.get(stream_id)
        if call is None or not first_flags & frames.END_STREAM:
            return
        code, text = status or (RpcCode.INTERNAL, "the response ended without a status")
        if code == RpcCode.OK:
            whole = not call.pieces and (call.streaming or len(call.responses) == 1)
            self._end(call, None if whole else CallFailed(RpcCode.INTERNAL, _NOT_ONE))
        else:
            self._end(call, CallFailed(code, text))

    def _on_reset(self, stream_id: int, code: int) -> None:
        if call := self._calls.get(stream_id):
            refused = code == ErrorCode.REFUSED_STREAM
            text = f"the server ended the call with HTTP/2 error {code}"
            call.rest = call.rest[:0]
            self._end(call, CallFailed(RpcCode.UNAVAILABLE if refused else RpcCode.INTERNAL, text))

    def _on_goaway(self, payload: bytes) -> None:
        text = payload[8:].decode(errors="replace")
        error = ConnectionFailed(RpcCode.UNAVAILABLE, f"the server is going away: {text}")
        self._failure = error
        last_id = int.from_bytes(payload[:4], "big") & frames.MOST_31_BITS
        for call in [one for stream_id, one in self._calls.items() if stream_id > last_id]:
            self._end(call, error)

    def _on_settings(self, payload: bytes) -> None:
        size = frames.read_settings(payload).get(frames.INITIAL_WINDOW_SIZE)
        if size is not None:
            for call in self._calls.values():
                call.widen(size - self._initial_window)
            self._initial_window = size
        self._outbox.put(frames.SETTINGS_ACK)

    def _fail(self, call: ClientCall, error: CallFailed) -> None:
        self._outbox.put(frames.numbers(frames.RST_STREAM, call.stream_id, ErrorCode.CANCEL))
        call.rest = call.rest[:0]
        self._end(call, error)

    def _end(self, call: ClientCall, error: CallFailed | None) -> None:
        del self._calls[call.stream_id]
        self._outbox.forget(call.stream_id)
        if call.rest:  # the server responded before it had the whole request
            self._outbox.put(frames.numbers(frames.RST_STREAM, call.stream_id, ErrorCode.CANCEL))
        call.ended, call.error = True, error
        if not call.streaming:
            self._ended.append(call)


def write_timeout(timeout_s: float) -> bytes:
    """The value of a grpc-timeout, rounded down to eight digits."""
    timeout_us = max(int(timeout_s * 1e6), 0)
    return b"%du" % timeout_us if timeout_us < 10**8 else b"%dS" % min(timeout_s, 99_999_999)


def read_status(headers: Sequence[Header]) -> tuple[int, str] | None:
    """Code and text in the headers or trailers of a response; None if there is no status yet.

    An HTTP status other than 200 without a gRPC one counts as UNKNOWN.
    """
    fields = dict(headers)
    code, status = fields.get(b"grpc-status"), fields.get(b":status", b"200")
    if code is None:
        return None if status == b"200" else (RpcCode.UNKNOWN, f"HTTP status {status.decode()}")
    text = unquote(fields.get(b"grpc-message", b"").decode(errors="replace"), errors="replace")
    return int(code) if code.isdigit() else RpcCode.UNKNOWN, text
