"""A gRPC client over a blocking unix socket that costs little beside the server under test.

One connection is one object for one thread. The headers of a method are made once, a call is one
send, and an answer that repeats the bytes of the one before it is not read again. How many
connections and streams are busy is decided in `loop`.
"""

from __future__ import annotations

import socket
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import unquote

from hpack import Decoder, HPACKError

from benchmarks import http2
from benchmarks.http2 import Flag, Kind, Setting

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 30.0
READ_BYTES = 64 * 1024
"""Below the size from which an allocation is a mapping of its own, which costs microseconds."""

OUR_WINDOW_BYTES = 1 << 30
"""What the server may send of one answer before it is told that more is welcome."""

_LEARNT_BYTES = 64 * 1024
"""A longer answer is not kept to be recognised."""


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
class _Call:
    """An open stream; `window` is what may be sent on it. A followed one is read by `message`."""

    window: int
    followed: bool = False
    data: bytearray = field(default_factory=bytearray)
    messages: deque[bytes] = field(default_factory=deque)
    status: int | None = None
    text: str = ""


class _Prepared(NamedTuple):
    """A whole call but for its stream, whose id stands between the parts."""

    method: Method
    payload: bytes
    parts: tuple[bytes, bytes, bytes]
    data_bytes: int


@dataclass(slots=True)
class _Learning:
    """An answer whose frames stand side by side in one read, while it is being read."""

    stream_id: int = 0
    begins: int = 0
    cuts: list[int] = field(default_factory=list)


class Connection:
    """A connection to the server at a socket.

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
        self._calls: dict[int, _Call] = {}
        self._done: list[Done] = []
        self._rest = b""
        self._headers: tuple[int, int, bytes] | None = None
        self._decoder = Decoder()
        self._known: dict[bytes, dict[str, str]] = {}
        self._window = self._first_window = http2.DEFAULT_WINDOW_BYTES
        self._frame_bytes = http2.DEFAULT_FRAME_BYTES
        self._received = 0
        self._learning = _Learning()
        self._template: tuple[bytes, ...] = ()
        self._answer = b""
        self._prepared: _Prepared | None = None
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

    def call(self, method: Method, payload: bytes) -> bytes:
        """One call to its end.

        Raises:
            CallError: it was answered with an error status.
            ConnectionLost: see above.
        """
        prepared = self._prepared
        if (
            prepared is not None
            and prepared.payload == payload
            and prepared.method is method
            and self._template
            and prepared.data_bytes <= self._window
            and not (self._calls or self._rest or self._done)
        ):
            return self._call_again(prepared)
        stream_id = self.begin(method, payload)
        answer = self._answer_of(stream_id)
        self._prepare(method, payload)
        return answer

    def _prepare(self, method: Method, payload: bytes) -> None:
        """Make the bytes of a call in advance, if they fit into one send."""
        data = http2.message(payload)
        if len(data) > min(self._first_window, self._frame_bytes):
            return
        head = http2.frame(Kind.HEADERS, Flag.END_HEADERS, 0, method.block)
        body = http2.frame(Kind.DATA, Flag.END_STREAM, 0, data)
        parts = head[:5], head[9:] + body[:5], body[9:]
        self._prepared = _Prepared(method, payload, parts, len(data))

    def _call_again(self, prepared: _Prepared) -> bytes:
        """The call before once more, while nothing else is under way: as cheap as can be."""
        stream_id = self._next_id
        self._next_id += 2
        name = http2.stream_bytes(stream_id)
        self._window -= prepared.data_bytes
        self._send(name.join(prepared.parts))
        data = self._read()
        expected = name.join(self._template)
        if data == expected:
            self._received += len(self._answer)
            return self._answer
        self._calls[stream_id] = _Call(self._first_window - prepared.data_bytes)
        self._feed(data)
        return self._answer_of(stream_id)

    def _answer_of(self, stream_id: int) -> bytes:
        """Wait for the end of a call; those of others are dropped."""
        while True:
            for done in self.receive():
                if done.stream_id != stream_id:
                    continue
                if done.error is not None:
                    raise done.error
                return done.answer

    def begin(self, method: Method, payload: bytes) -> int:
        """Send a call and return its stream; waits only while the server has no room for it."""
        stream_id = self._next_id
        self._next_id += 2
        data = http2.message(payload)
        if len(data) > min(self._window, self._first_window, self._frame_bytes):
            self._calls[stream_id] = _Call(self._first_window)
            self._send(http2.frame(Kind.HEADERS, Flag.END_HEADERS, stream_id, method.block))
            self._send_in_pieces(stream_id, data)
            return stream_id
        self._window -= len(data)
        self._calls[stream_id] = _Call(self._first_window - len(data))
        self._send(
            http2.frame(Kind.HEADERS, Flag.END_HEADERS, stream_id, method.block)
            + http2.frame(Kind.DATA, Flag.END_STREAM, stream_id, data)
        )
        return stream_id

    def follow(self, method: Method, payload: bytes = b"") -> int:
        """Send a call whose answer is a stream and return that: see `message`."""
        stream_id = self.begin(method, payload)
        self._calls[stream_id].followed = True
        return stream_id

    def receive(self) -> list[Done]:
        """Wait for bytes from the server and return the calls that ended by them."""
        if not self._done:
            self._feed(self._read())
        done, self._done = self._done, []
        return done

    def message(self, stream_id: int) -> bytes:
        """Wait for the next message of an answer that is a stream.

        Raises:
            CallError: the stream has ended; the code is 0 if nothing was wrong.
            ConnectionLost: see above.
        """
        call = self._calls[stream_id]
        while not call.messages:
            if call.status is not None:
                del self._calls[stream_id]
                raise CallError(call.status, call.text or "the stream has ended")
            self._feed(self._read())
        return call.messages.popleft()

    def cancel(self, stream_id: int) -> None:
        """End a stream from this side."""
        self._calls.pop(stream_id, None)
        self._send(http2.frame(Kind.RST_STREAM, Flag.NONE, stream_id, (8).to_bytes(4, "big")))

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
        except TimeoutError as error:
            timeout_s = self._socket.gettimeout() or 0.0
            raise ConnectionLost(f"{self._path} did not answer within {timeout_s:g} s") from error
        except OSError as error:
            raise ConnectionLost(f"{self._path}: {error}") from error
        if not data:
            raise ConnectionLost(f"{self._path} closed the connection")
        return data

    def _feed(self, data: bytes) -> None:
        """Read what came; whole frames only, the rest waits for more."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at, end = 0, len(data)
        self._learning = _Learning()
        while at < end:
            if at + http2.FRAME_HEADER_BYTES > end:
                break
            if self._template and (length := self._recognised(data, at)):
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
        expected = name.join(self._template)
        if not data.startswith(expected, at):
            return 0
        stream_id = http2.number(name)
        if self._calls.pop(stream_id, None) is None:
            return 0
        self._received += len(self._answer)
        self._done.append(Done(stream_id, self._answer, None))
        return len(expected)

    def _take(self, data: bytes, at: int, head: http2.FrameHeader) -> None:
        begins = at + http2.FRAME_HEADER_BYTES
        body = data[begins : begins + head.length]
        if head.flags & Flag.PADDED and head.kind in (Kind.DATA, Kind.HEADERS):
            raise ConnectionLost(f"{self._path} pads its frames, which is not known here")
        learning = self._learning
        if learning.stream_id != head.stream_id or not head.stream_id:
            learning.stream_id, learning.begins, learning.cuts = head.stream_id, at, []
        learning.cuts.append(at + 5)
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
        call.data += body
        while len(call.data) >= 5:
            compressed, length = http2.message_length(call.data)
            if compressed:
                raise ConnectionLost(f"{self._path} compresses its answers, unasked")
            if len(call.data) < 5 + length:
                break
            call.messages.append(bytes(call.data[5 : 5 + length]))
            del call.data[: 5 + length]
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
        fields = self._decoded(body)
        if not flags & Flag.END_STREAM:
            return
        status = fields.get("grpc-status")
        if status is None:
            text = f"an answer without grpc-status: HTTP {fields.get(':status', 'status unknown')}"
            self._end(stream_id, 13, text)
            return
        if int(status) == 0:
            self._learn(stream_id, data)
        # Percent-encoded, as gRPC's protocol over HTTP/2 has it.
        self._end(stream_id, int(status), unquote(fields.get("grpc-message", "")))

    def _decoded(self, block: bytes) -> dict[str, str]:
        """Fields of a block; one that changes no table is decoded once."""
        found = self._known.get(block)
        if found is not None:
            return found
        try:
            pairs = self._decoder.decode(block)
        except HPACKError as error:
            raise ConnectionLost(
                f"{self._path} sent headers that cannot be read: {error}"
            ) from None
        fields = {_text(name): _text(value) for name, value in pairs}
        if http2.leaves_tables_alone(block):
            self._known[block] = fields
        else:
            self._known.clear()
            self._template = ()
        return fields

    def _learn(self, stream_id: int, data: bytes) -> None:
        """Keep the answer that ends here, if it stands whole in `data` and changed no table."""
        learning, call = self._learning, self._calls.get(stream_id)
        if call is None or call.followed or len(call.messages) != 1:
            return
        head = http2.frame_header(data, learning.begins)
        last = http2.frame_header(data, learning.cuts[-1] - 5)
        if head.kind != Kind.HEADERS or head.flags & Flag.END_STREAM:
            return
        if len(call.messages[0]) > _LEARNT_BYTES or not all(
            http2.leaves_tables_alone(self._block(data, cut - 5)) for cut in learning.cuts
        ):
            return
        ends = learning.cuts[-1] + 4 + last.length
        begins = [learning.begins, *(cut + 4 for cut in learning.cuts)]
        self._template = tuple(
            data[begin:cut] for begin, cut in zip(begins, [*learning.cuts, ends], strict=True)
        )
        self._answer = call.messages[0]

    @staticmethod
    def _block(data: bytes, at: int) -> bytes:
        """The headers of the frame at this place; empty for a frame without any."""
        head = http2.frame_header(data, at)
        begins = at + http2.FRAME_HEADER_BYTES
        if head.kind != Kind.HEADERS:
            return b"" if head.kind == Kind.DATA else b"\0"
        return data[begins : begins + head.length]

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


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")
