"""HTTP/2 as a client of gRPC needs it, over a blocking unix socket: streams, windows, frames.

One object for one connection and one thread. How calls are made with it is in `client`; what an
answer's bytes say, and when they only repeat, in `answers`.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import unquote

from hpack import HPACKError

from benchmarks import http2
from benchmarks.answers import HeaderReader, Repeats
from benchmarks.http2 import Flag, Kind, Setting
from benchmarks.messages import Messages

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 30.0
READ_BYTES = 64 * 1024
"""Below the size from which an allocation is a mapping of its own, which costs microseconds."""

OUR_WINDOW_BYTES = 1 << 30
"""What the server may send of one answer before it is told that more is welcome."""


class CallError(Exception):
    """A call that was answered with an error status; `code` is gRPC's number."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"gRPC status {code}: {text}")
        self.code = code
        self.text = text


class ConnectionLost(Exception):
    """The connection is of no use any more; the text says why."""


class Done(NamedTuple):
    """A call that has ended: its stream, its answer, and what was wrong with it."""

    stream_id: int
    answer: bytes
    error: CallError | None


@dataclass(frozen=True, slots=True)
class Method:
    """What is sent for a call of `/service/method`, up to its message."""

    name: str
    block: bytes

    @classmethod
    def of(cls, name: str) -> Self:
        """The method with its headers, made once."""
        return cls(name, http2.request_block(name))


@dataclass(slots=True)
class Call:
    """An open stream; `window` is what may be sent on it. A followed one is read by `message`."""

    window: int
    followed: bool = False
    messages: Messages = field(default_factory=Messages)
    status: int | None = None
    text: str = ""


class Wire:
    """Calls on a connection to the server at a socket.

    Raises:
        ConnectionLost: nobody listens there, from the constructor; the server went away, said
            goodbye or broke the protocol, or did not answer within `timeout_s` (None: no limit),
            from any method.
    """

    def __init__(self, path: Path | str, timeout_s: float | None = TIMEOUT_S) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        self._path = str(path)
        self._next_id = 1
        self._calls: dict[int, Call] = {}
        self._done: list[Done] = []
        self._rest = b""
        self._headers: tuple[int, int, bytes] | None = None
        self._repeats = Repeats()
        self._reader = HeaderReader(self._repeats.forget)
        self._window = self._first_window = http2.DEFAULT_WINDOW_BYTES
        self._frame_bytes = http2.DEFAULT_FRAME_BYTES
        self._received = 0
        try:
            self._socket.connect(self._path)
        except OSError as error:
            self._socket.close()
            raise ConnectionLost(f"nobody answers at {path}: {error.strerror or error}") from error
        ours = {
            Setting.ENABLE_PUSH: 0,
            Setting.INITIAL_WINDOW_SIZE: OUR_WINDOW_BYTES,
            Setting.MAX_FRAME_SIZE: http2.DEFAULT_FRAME_BYTES,
        }
        more = OUR_WINDOW_BYTES - http2.DEFAULT_WINDOW_BYTES
        self._send(http2.PREFACE + http2.settings(ours) + http2.window_update(0, more))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; open calls are forgotten. Safe to call twice."""
        self._socket.close()

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    def shut(self) -> None:
        """Wake a thread that waits for this connection, which then raises ConnectionLost."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it is closed already

    def begin(self, method: Method, payload: bytes) -> int:
        """Send a call and return its stream; waits only while the server has no room for it."""
        stream_id = self._next_id
        self._next_id += 2
        data = http2.message(payload)
        if len(data) > min(self._window, self._first_window, self._frame_bytes):
            self._calls[stream_id] = Call(self._first_window)
            self._send(http2.frame(Kind.HEADERS, Flag.END_HEADERS, stream_id, method.block))
            self._send_in_pieces(stream_id, data)
            return stream_id
        self._window -= len(data)
        self._calls[stream_id] = Call(self._first_window - len(data))
        self._send(
            http2.frame(Kind.HEADERS, Flag.END_HEADERS, stream_id, method.block)
            + http2.frame(Kind.DATA, Flag.END_STREAM, stream_id, data)
        )
        return stream_id

    def receive(self) -> list[Done]:
        """Wait for bytes from the server and return the calls that ended by them."""
        if not self._done:
            self._feed(self._read())
        done, self._done = self._done, []
        return done

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ConnectionLost(f"{self._path} takes no more: {error}") from error

    def _send_in_pieces(self, stream_id: int, data: bytes) -> None:
        call, at = self._calls[stream_id], 0
        while at < len(data):
            room = min(self._window, call.window, self._frame_bytes)
            if room <= 0:
                self._feed(self._read())
                if call.status is not None:
                    return  # refused before it was read
                continue
            piece = data[at : at + room]
            at += len(piece)
            self._window -= len(piece)
            call.window -= len(piece)
            flags = Flag.END_STREAM if at == len(data) else Flag.NONE
            self._send(http2.frame(Kind.DATA, flags, stream_id, piece))

    def _read(self) -> bytes:
        try:
            data = self._socket.recv(READ_BYTES)
        except OSError as error:
            raise self._lost(error) from error
        return self._checked(data)

    def _lost(self, error: OSError) -> ConnectionLost:
        if not isinstance(error, TimeoutError):
            return ConnectionLost(f"{self._path}: {error}")
        timeout_s = self._socket.gettimeout() or 0.0
        return ConnectionLost(f"{self._path} did not answer within {timeout_s:g} s")

    def _checked(self, data: bytes) -> bytes:
        """What was read, unless it is nothing: the server has closed the connection then."""
        if not data:
            raise ConnectionLost(f"{self._path} closed the connection")
        return data

    def _feed(self, data: bytes) -> None:
        """Read what came; whole frames only, the rest waits for more."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at, end = 0, len(data)
        self._repeats.begin()
        while at < end:
            if at + http2.FRAME_HEADER_BYTES > end:
                break
            if self._repeats.known and (length := self._recognised(data, at)):
                at += length
                continue
            length, kind, flags, stream_id = http2.frame_header(data, at)
            after = at + http2.FRAME_HEADER_BYTES + length
            if after > end:
                break
            self._take(data, at, http2.FrameHeader(length, kind, flags, stream_id))
            at = after
        self._rest = data[at:]
        if self._received > OUR_WINDOW_BYTES // 2:
            self._send(http2.window_update(0, self._received))
            self._received = 0

    def _recognised(self, data: bytes, at: int) -> int:
        """Bytes of a whole answer that is, but for its stream, the one before it; or 0."""
        name = data[at + 5 : at + 9]
        expected = self._repeats.of(name)
        if not data.startswith(expected, at):
            return 0
        stream_id = http2.number(name)
        if self._calls.pop(stream_id, None) is None:
            return 0
        message = self._repeats.message
        self._received += len(message)
        self._done.append(Done(stream_id, message, None))
        return len(expected)

    def _take(self, data: bytes, at: int, head: http2.FrameHeader) -> None:
        begins = at + http2.FRAME_HEADER_BYTES
        body = data[begins : begins + head.length]
        if head.flags & Flag.PADDED and head.kind in (Kind.DATA, Kind.HEADERS):
            raise ConnectionLost(f"{self._path} pads its frames, which is not known here")
        self._repeats.saw(head, at)
        match head.kind:
            case Kind.DATA:
                self._on_data(head, body)
            case Kind.HEADERS | Kind.CONTINUATION:
                self._on_headers(head, body, data)
            case Kind.SETTINGS if not head.flags & Flag.ACK:
                self._on_settings(body)
            case Kind.PING if not head.flags & Flag.ACK:
                self._send(http2.frame(Kind.PING, Flag.ACK, 0, body))
            case Kind.WINDOW_UPDATE:
                self._on_window(head.stream_id, http2.number(body))
            case Kind.RST_STREAM:
                text = f"the server reset the stream, HTTP/2 error {http2.number(body)}"
                self._end(head.stream_id, 13, text)
            case Kind.GOAWAY:
                text = body[8:].decode(errors="replace") or f"error {http2.number(body, 4)}"
                raise ConnectionLost(f"{self._path} said goodbye: {text}")
            case _:
                pass  # acknowledgements, and kinds that RFC 9113 tells to pass over

    def _on_data(self, head: http2.FrameHeader, body: bytes) -> None:
        self._received += head.length
        call = self._calls.get(head.stream_id)
        if call is None:
            return
        try:
            call.messages.feed(body)
        except ValueError as error:
            raise ConnectionLost(f"{self._path} sent {error}") from None
        if head.flags & Flag.END_STREAM:
            self._end(head.stream_id, 13, "an answer without trailers")

    def _on_headers(self, head: http2.FrameHeader, body: bytes, data: bytes) -> None:
        if head.kind == Kind.CONTINUATION:
            if self._headers is None:
                raise ConnectionLost(f"{self._path} sent CONTINUATION out of place")
            stream_id, flags, before = self._headers
            body = before + body
        else:
            if head.flags & Flag.PRIORITY:
                body = body[5:]
            stream_id, flags = head.stream_id, head.flags
        if not head.flags & Flag.END_HEADERS:
            self._headers = stream_id, flags, body
            return
        self._headers = None
        try:
            fields = self._reader.fields(body)
        except HPACKError as error:
            raise ConnectionLost(
                f"{self._path} sent headers that cannot be read: {error}"
            ) from None
        if not flags & Flag.END_STREAM:
            return
        status = fields.get("grpc-status")
        if status is None:
            text = f"an answer without grpc-status: HTTP {fields.get(':status', 'status unknown')}"
            self._end(stream_id, 13, text)
            return
        call = self._calls.get(stream_id)
        if int(status) == 0 and call is not None and not call.followed and len(call.messages) == 1:
            self._repeats.learn(data, call.messages[0])
        # Percent-encoded, as gRPC's protocol over HTTP/2 has it.
        self._end(stream_id, int(status), unquote(fields.get("grpc-message", "")))

    def _end(self, stream_id: int, code: int, text: str) -> None:
        call = self._calls.get(stream_id)
        if call is None or call.status is not None:
            return
        call.status, call.text = code, text
        if call.followed:
            return
        if code == 0 and len(call.messages) == 1:
            self._done.append(Done(stream_id, call.messages[0], None))
        elif code == 0:
            wrong = CallError(13, f"{len(call.messages)} messages in an answer that has one")
            self._done.append(Done(stream_id, b"", wrong))
        else:
            self._done.append(Done(stream_id, b"", CallError(code, text)))
        del self._calls[stream_id]

    def _on_settings(self, body: bytes) -> None:
        found = http2.read_settings(body)
        first = found.get(Setting.INITIAL_WINDOW_SIZE, self._first_window)
        for call in self._calls.values():
            call.window += first - self._first_window
        self._first_window = first
        self._frame_bytes = found.get(Setting.MAX_FRAME_SIZE, self._frame_bytes)
        self._send(http2.frame(Kind.SETTINGS, Flag.ACK, 0))

    def _on_window(self, stream_id: int, increment: int) -> None:
        if stream_id == 0:
            self._window += increment
        elif (call := self._calls.get(stream_id)) is not None:
            call.window += increment
