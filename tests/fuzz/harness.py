"""A connection fed with anything: bytes become a script of frames, and what must always hold, is.

No exception, no output that is not HTTP/2, nothing kept beyond its bounds, nothing kept at the end.
"""

from __future__ import annotations

import logging
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hpack import Decoder, Encoder
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame

from gpuplugin.rpc import RpcCode, RpcError, Service
from gpuplugin.rpc.h2.calls import ServerCalls, Stream
from gpuplugin.rpc.h2.connection import MAX_STREAMS, ServerConnection
from gpuplugin.rpc.h2.frames import DEFAULT_FRAME_BYTES, PREFACE
from gpuplugin.rpc.publication import Publication

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATHS = ("/t.S/Echo", "/t.S/Fail", "/t.S/Boom", "/t.S/Watch", "/t.S/Nothing")
_KINDS = 11
_SETTINGS_ACK_MOST = 64


def _fail(request: bytes) -> bytes:
    raise RpcError(RpcCode.INVALID_ARGUMENT, request.decode(errors="replace"))


def _boom(request: bytes) -> bytes:
    raise ValueError(request)


class Fuzzed:
    """One connection under a script, with a clock that only the script moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.watched = Publication()
        self.woken: list[Stream] = []
        self.sent = bytearray()
        self.encoder = Encoder()
        self.calls = ServerCalls(
            Service(
                "",
                {"/t.S/Echo": lambda request: request, "/t.S/Fail": _fail, "/t.S/Boom": _boom},
                {"/t.S/Watch": self.watched.subscribe},
            ),
            self.woken.append,
            lambda: self.now_s,
        )
        self.connection = ServerConnection(self.calls)

    def receive(self, data: bytes) -> None:
        self.connection.receive(data)
        assert len(self.calls.streams) <= MAX_STREAMS
        assert self.watched.open_streams <= MAX_STREAMS
        assert len(self.connection._rest) <= 9 + DEFAULT_FRAME_BYTES

    def pull(self) -> None:
        while self.woken:
            self.calls.pull(self.woken.pop())

    def take(self, limit: int) -> None:
        while data := self.calls.outbox.take(limit):
            self.sent += data

    def finish(self) -> None:
        """Everything is sent, and nothing stays."""
        self.pull()
        self.take(1 << 20)
        check_output(bytes(self.sent))
        self.connection.close()
        assert self.watched.open_streams == 0
        assert not self.calls.streams
        self.pull()
        self.connection.check_time()


def check_output(data: bytes) -> None:
    """Raise unless `data` is a sequence of whole frames that a client could read."""
    decoder = Decoder()
    at = 0
    while at < len(data):
        frame, length = Frame.parse_frame_header(memoryview(data[at : at + 9]))
        assert length <= DEFAULT_FRAME_BYTES
        assert at + 9 + length <= len(data)
        frame.parse_body(memoryview(data[at + 9 : at + 9 + length]))
        at += 9 + length
        assert not isinstance(frame, ContinuationFrame)
        if isinstance(frame, HeadersFrame):
            decoder.decode(frame.data)
        if isinstance(frame, HeadersFrame | DataFrame):
            assert frame.stream_id % 2


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


class Script:
    """Reads numbers and bytes off the input until it is used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def bytes(self, length: int) -> bytes:
        self._at += length
        return self._data[self._at - length : self._at]


def frames_of(data: bytes, encoder: Encoder) -> list[bytes]:
    """What a script makes the client send, piece by piece; pieces need not be whole frames."""
    script = Script(data)
    pieces = [PREFACE + _frame(4, 0, 0, b"")]
    if script.byte() == 255:
        pieces = []
    while script.left:
        pieces.append(_piece(script, encoder))
    return pieces


def _piece(script: Script, encoder: Encoder) -> bytes:
    kind = script.byte() % (_KINDS + 4)
    if kind < _KINDS:
        flags, stream, length = script.byte(), script.byte() % 16, script.byte()
        return _frame(kind, flags, stream, script.bytes(length))
    if kind == _KINDS:
        return script.bytes(script.byte())
    stream, choice = script.byte() % 16 | 1, script.byte()
    if kind == _KINDS + 1:
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", PATHS[choice % len(PATHS)]),
            ("content-type", "application/grpc"),
            *([("grpc-timeout", f"{choice}m")] if choice % 3 == 0 else []),
        ]
        return _frame(1, 4 | choice >> 7, stream, encoder.encode(headers))
    if kind == _KINDS + 2:
        message = bytes(choice * 64)
        body = b"\x00" + struct.pack(">I", len(message)) + message
        return _frame(0, script.byte() & 1, stream, body[:DEFAULT_FRAME_BYTES])
    return _frame(0, 0, stream, bytes(16_000))


def run(data: bytes) -> None:
    """Run a script, with the server's other work between its pieces.

    Raises:
        AssertionError: something did not hold; any other exception is a fault as well.
    """
    fuzzed = Fuzzed()
    other: dict[int, Callable[[], object]] = {
        0: lambda: fuzzed.take(100),
        1: fuzzed.pull,
        2: lambda: fuzzed.watched.publish(data[:50] * 20 + bytes((len(fuzzed.sent) % 256,))),
        3: fuzzed.connection.check_time,
        4: fuzzed.watched.end_streams,
        5: fuzzed.connection.drain,
    }
    for number, piece in enumerate(frames_of(data, fuzzed.encoder)):
        fuzzed.receive(piece)
        fuzzed.now_s += 0.03
        other.get(data[number % len(data)] % 16 if data else 0, int)()
    fuzzed.finish()


def run_in_pieces(data: bytes, sizes: list[int]) -> None:
    """However its bytes are cut, the connection says the same.

    Raises:
        AssertionError: it does not.
    """
    whole, cut = Fuzzed(), Fuzzed()
    stream = b"".join(frames_of(data, whole.encoder))
    whole.receive(stream)
    at, turn = 0, 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        cut.receive(stream[at : at + size])
        at, turn = at + size, turn + 1
    whole.finish()
    cut.finish()
    assert whole.sent == cut.sent


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines about handlers that fail on purpose."""
    log = logging.getLogger("gpuplugin.rpc.h2.calls")
    log.disabled = True
    yield
    log.disabled = False
