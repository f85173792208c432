"""A gRPC client that costs little beside the server under test.

The headers of a method are made once, a call is one send, and an answer that repeats the bytes of
the one before it is not read again. One connection is for one thread. How many connections and
streams are busy is decided in `loop`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from benchmarks import http2
from benchmarks.http2 import Flag, Kind
from benchmarks.wire import TIMEOUT_S, Call, CallError, ConnectionLost, Done, Method, Wire

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TIMEOUT_S", "CallError", "Connection", "ConnectionLost", "Done", "Method"]


class _Prepared(NamedTuple):
    """A whole call but for its stream, whose id stands between the parts."""

    method: Method
    payload: bytes
    parts: tuple[bytes, bytes, bytes]
    data_bytes: int


class Connection(Wire):
    """A connection to the server at a socket.

    Raises:
        ConnectionLost: nobody listens there, from the constructor; the server went away, said
            goodbye or broke the protocol, or did not answer within `timeout_s` (None: no limit),
            from any method.
    """

    def __init__(self, path: Path | str, timeout_s: float | None = TIMEOUT_S) -> None:
        super().__init__(path, timeout_s)
        self._prepared: _Prepared | None = None

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
            and self._repeats.known
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
        if data == self._repeats.of(name):
            self._received += len(self._repeats.message)
            return self._repeats.message
        self._calls[stream_id] = Call(self._first_window - prepared.data_bytes)
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

    def follow(self, method: Method, payload: bytes = b"") -> int:
        """Send a call whose answer is a stream and return that: see `message`."""
        stream_id = self.begin(method, payload)
        self._calls[stream_id].followed = True
        return stream_id

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
