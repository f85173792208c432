"""A gRPC client that costs little beside the server under test.

The headers of a method are made once, a call is one send, and an answer that repeats the bytes of
the one before it is not read again. One connection is for one thread. How many connections and
streams are busy is decided in `loop`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import http2
from benchmarks.http2 import Flag, Kind
from benchmarks.wire import (
    READ_BYTES,
    TIMEOUT_S,
    Call,
    CallError,
    ConnectionLost,
    Done,
    Method,
    Wire,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TIMEOUT_S", "CallError", "Connection", "ConnectionLost", "Done", "Method"]


@dataclass(frozen=True, slots=True)
class _Again:
    """A call that was answered, as bytes but for its stream, whose number stands between them."""

    method: Method
    payload: bytes
    data_bytes: int
    request: tuple[bytes, ...]
    answer: tuple[bytes, ...]
    message: bytes


class Connection(Wire):
    """A connection to the server at a socket.

    Raises:
        ConnectionLost: nobody listens there, from the constructor; the server went away, said
            goodbye or broke the protocol, or did not answer within `timeout_s` (None: no limit),
            from any method.
    """

    def __init__(self, path: Path | str, timeout_s: float | None = TIMEOUT_S) -> None:
        super().__init__(path, timeout_s)
        self._again: _Again | None = None
        """The last call that was the only one under way."""

    def call(self, method: Method, payload: bytes) -> bytes:
        """One call to its end.

        Raises:
            CallError: it was answered with an error status.
            ConnectionLost: see above.
        """
        again = self._again
        if (
            again is None
            or again.method is not method
            or again.payload != payload
            or again.data_bytes > self._window
            or again.answer is not self._repeats.parts
            or self._calls
            or self._rest
            or self._done
        ):
            return self._call_anew(method, payload)
        stream_id = self._next_id
        number = http2.stream_bytes(stream_id)
        self._next_id = stream_id + 2
        self._window -= again.data_bytes
        try:
            self._socket.sendall(number.join(again.request))
            expected = number.join(again.answer)
            data = self._socket.recv(READ_BYTES)
        except OSError as error:
            raise self._lost(error) from error
        if data == expected:
            self._received += len(again.message)
            return again.message
        self._calls[stream_id] = Call(self._first_window - again.data_bytes)
        self._feed(self._checked(data))
        return self._answer_of(stream_id)

    def _call_anew(self, method: Method, payload: bytes) -> bytes:
        answer = self._answer_of(self.begin(method, payload))
        data = http2.message(payload)
        alone = not (self._calls or self._rest or self._done)
        if (
            alone
            and self._repeats.known
            and len(data) <= min(self._first_window, self._frame_bytes)
        ):
            head = http2.frame(Kind.HEADERS, Flag.END_HEADERS, 0, method.block)
            body = http2.frame(Kind.DATA, Flag.END_STREAM, 0, data)
            request = head[:5], head[9:] + body[:5], body[9:]
            repeats = self._repeats
            self._again = _Again(
                method, payload, len(data), request, repeats.parts, repeats.message
            )
        return answer

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
