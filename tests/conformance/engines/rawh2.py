"""A scripted HTTP/2 client: sends exactly the frames it is told to, and keeps what comes back.

It shares no code with the engines: frames are packed here, headers coded by `hpack`.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from hpack import Decoder, Encoder

from tests.component.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM = ACK = 1
END_HEADERS = 4
PADDED = 8
HAS_PRIORITY = 32
PATIENCE_S = 10.0


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def number(self) -> int:
        """The error code or increment of a RST_STREAM or WINDOW_UPDATE."""
        return int.from_bytes(self.payload[:4], "big")


@dataclass
class Answer:
    """What came back on one stream until it ended; `reset` is the code of a RST_STREAM."""

    fields: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    reset: int | None = None
    ended: bool = False

    def __getitem__(self, name: str) -> str | None:
        return next((value for key, value in self.fields if key == name), None)

    @property
    def messages(self) -> list[bytes]:
        found, rest = [], self.body
        while rest:
            end = 5 + int.from_bytes(rest[1:5], "big")
            found.append(rest[5:end])
            rest = rest[end:]
        return found


def pack(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream)
    return head + payload


def u32(number: int) -> bytes:
    return struct.pack(">I", number)


def grpc_message(data: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + u32(len(data)) + data


def setting(values: Mapping[int, int]) -> bytes:
    payload = b"".join(struct.pack(">HI", key, value) for key, value in values.items())
    return pack(SETTINGS, 0, 0, payload)


def request_headers(path: str, **changed: str | None) -> list[tuple[str, str]]:
    """Headers as a gRPC client sends them; `changed` has `-` as `_`, pseudo-headers as `method`."""
    headers: dict[str, str | None] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    for key, value in changed.items():
        name = key.replace("_", "-")
        headers[f":{name}" if f":{name}" in headers else name] = value
    return [(key, value) for key, value in headers.items() if value is not None]


class RawClient:
    def __init__(
        self, path: Path, *, settings: Mapping[int, int] | None = None, greet: bool = True
    ) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(str(path))
        self.encoder = Encoder()
        self.decoder = Decoder(1 << 20)
        self.answers: defaultdict[int, Answer] = defaultdict(Answer)
        self.others: list[Frame] = []
        self.seen: list[Frame] = []
        self.closed = False
        self.bodies: list[bytes] = []
        self._rest = b""
        self._next_stream = 1
        if greet:
            self.send(PREFACE, setting(settings or {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def send_in_pieces(self, data: bytes, size: int) -> None:
        """Send each piece after the server has read the one before."""
        for at in range(0, len(data), size):
            self.send(data[at : at + size])
            eventually(lambda: self._unread() == 0)

    def _unread(self) -> int:
        """Bytes that the server has not read yet (unix(7), SIOCOUTQ)."""
        return int.from_bytes(fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    def stream(self) -> int:
        """A new stream's number."""
        self._next_stream += 2
        return self._next_stream - 2

    def headers(self, stream: int, headers: Sequence[tuple[str, str]], flags: int = 4) -> bytes:
        return pack(HEADERS, flags, stream, self.encoder.encode(headers))

    def begin(self, path: str, message: bytes = b"", **changed: str | None) -> int:
        """Send a whole request in one write; returns its stream."""
        stream = self.stream()
        body = grpc_message(message)
        frames = [pack(DATA, 0, stream, body[at : at + 16384]) for at in range(0, len(body), 16384)]
        last = frames[-1]
        frames[-1] = last[:4] + b"\x01" + last[5:]
        self.send(self.headers(stream, request_headers(path, **changed)), *frames)
        return stream

    def call(self, path: str, message: bytes = b"", **changed: str | None) -> Answer:
        return self.finish(self.begin(path, message, **changed))

    def finish(self, stream: int) -> Answer:
        """Read until the stream has ended."""
        answer = self.answers[stream]
        self.read_until(lambda: answer.ended or self.closed)
        return answer

    def ping(self, text: bytes = b"12345678") -> None:
        """A round trip: what the server had to say about earlier frames has come after it."""
        self.send(pack(PING, 0, 0, text))
        self.read_until(
            lambda: any(one.kind == PING and one.payload == text for one in self.others)
        )
        self.others = [one for one in self.others if one.payload != text]

    def goaway(self) -> int:
        """Read until the server has closed the connection; the code of its GOAWAY."""
        self.read_until(lambda: self.closed)
        frame = next(one for one in self.others if one.kind == GOAWAY)
        return int.from_bytes(frame.payload[4:8], "big")

    def read_message(self, stream: int, message: bytes) -> None:
        """Read until `message` is the last one on a stream."""
        self.read_until(lambda: self.answers[stream].messages[-1:] == [message])

    def read_until(self, done: Callable[[], object]) -> None:
        while not done():
            if self.closed:
                raise AssertionError(f"the server closed the connection: {self.others}")
            self._read()

    def _read(self) -> None:
        try:
            data = self.socket.recv(1 << 20)
        except ConnectionError:
            data = b""
        self.closed = not data
        self._rest += data
        while len(self._rest) >= 9:
            end = 9 + int.from_bytes(self._rest[:3], "big")
            if len(self._rest) < end:
                return
            kind, flags, stream = struct.unpack(">BBI", self._rest[3:9])
            self._take(Frame(kind, flags, stream, self._rest[9:end]))
            self._rest = self._rest[end:]

    def _take(self, frame: Frame) -> None:
        self.seen.append(frame)
        answer = self.answers[frame.stream] if frame.stream else None
        if answer is None or frame.kind not in (DATA, HEADERS, RST):
            self.others.append(frame)
        elif frame.kind == RST:
            answer.reset = frame.number
            answer.ended = True
        else:
            if frame.kind == HEADERS:
                decoded = self.decoder.decode(frame.payload, raw=True)
                answer.fields += [(one[0].decode(), one[1].decode()) for one in decoded]
            else:
                answer.body += frame.payload
            answer.ended = answer.ended or bool(frame.flags & END_STREAM)
