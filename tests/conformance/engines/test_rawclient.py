"""The client half: against both engines, and against scripted servers that do what they may."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, TypeAlias

import pytest
from hpack import Encoder

from gpuplugin.rpc.client import CallFailed, unary_call, unary_call_async
from gpuplugin.rpc.h2.client import ClientConnection, Method
from tests.component.waiting import eventually
from tests.conformance.engines.conftest import BOOM, ECHO, FAIL, REPEAT
from tests.conformance.engines.rawh2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    RST,
    SETTINGS,
    WINDOW,
    grpc_message,
    pack,
    setting,
    u32,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conformance.engines.conftest import Served

DEADLINE, EXHAUSTED, INTERNAL, UNAVAILABLE = 4, 8, 13, 14
REQUEST = pack(DATA, END_STREAM, 1, grpc_message(b"request"))
Call: TypeAlias = "Callable[[Path, str, bytes, float], bytes]"


def _on_a_loop(path: Path, method: str, request: bytes, timeout_s: float) -> bytes:
    return asyncio.run(unary_call_async(path, method, request, timeout_s))


@pytest.fixture(params=[unary_call, _on_a_loop], ids=["blocking", "async"])
def call(request: pytest.FixtureRequest) -> Call:
    made: Call = request.param
    return made


@pytest.mark.parametrize("size", [0, 5, 70_000, 3_000_000])
def test_a_call_is_answered(call: Call, served: Served, size: int) -> None:
    assert call(served.path, ECHO, b"x" * size, 20.0) == b"x" * size


def test_the_error_of_a_handler(call: Call, served: Served) -> None:
    with pytest.raises(CallFailed) as caught:
        call(served.path, FAIL, "3 100 % \u00e4".encode(), 20.0)
    assert (caught.value.code, caught.value.message) == (3, "100 % \u00e4")


def test_the_exception_of_a_handler(call: Call, served: Served) -> None:
    with pytest.raises(CallFailed) as caught:
        call(served.path, BOOM, b"oh no", 20.0)
    text = "Exception calling application: oh no"
    assert (caught.value.code, caught.value.message) == (2, text)


def test_an_unknown_method(call: Call, served: Served) -> None:
    with pytest.raises(CallFailed) as caught:
        call(served.path, "/no.Service/Method", b"", 20.0)
    assert caught.value.code == 12


def test_too_large_an_answer(call: Call, served: Served) -> None:
    with pytest.raises(CallFailed) as caught:
        call(served.path, REPEAT, b"%d" % (4 * 1024 * 1024 + 1), 20.0)
    assert caught.value.code == EXHAUSTED
    assert len(call(served.path, REPEAT, b"%d" % (4 * 1024 * 1024), 20.0)) == 4 * 1024 * 1024


@pytest.mark.parametrize("make", [None, "file", "socket"])
def test_a_socket_that_nobody_serves(call: Call, tmp_path: Path, make: str | None) -> None:
    path = tmp_path / "s.sock"
    if make == "file":
        path.write_text("")
    if make == "socket":
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
    with pytest.raises(CallFailed) as caught:
        call(path, ECHO, b"", 20.0)
    assert caught.value.code == UNAVAILABLE
    assert str(path) in caught.value.message


class Scripted:
    """A server for one client: for each of `steps` it waits for some bytes and sends others."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.received = b""
        self.steps: list[tuple[bytes, bytes]] = []
        self.close_after = False
        self.gone = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
        with peer:
            peer.settimeout(10)
            for awaited, answer in self.steps:
                while awaited not in self.received and (data := peer.recv(1 << 16)):
                    self.received += data
                peer.sendall(answer)
            while not self.close_after and (data := peer.recv(1 << 16)):
                self.received += data
        self.gone = True

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(self.path))
        self._thread.join(10)
        self._listener.close()


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Scripted]:
    server = Scripted(tmp_path / "k.sock")
    yield server
    server.close()


def _good(encoder: Encoder) -> tuple[bytes, bytes]:
    """Header blocks as grpc-go codes them: Huffman, and entries for the table."""
    headers = encoder.encode([(":status", "200"), ("content-type", "application/grpc")])
    return headers, encoder.encode([("grpc-status", "0"), ("grpc-message", "")])


def test_a_server_that_does_all_that_it_may(call: Call, scripted: Scripted) -> None:
    headers, trailers = _good(Encoder())
    body = grpc_message(b"answer")
    everything = b"".join(
        [
            setting({4: 100, 5: 20_000, 3: 250}),
            pack(SETTINGS, 1, 0),
            pack(WINDOW, 0, 0, u32(1 << 20)),
            pack(PING, 0, 0, b"bdp ping"),
            pack(PRIORITY, 0, 1, bytes(5)),
            pack(0xCC, 0, 0, b"unknown"),
            pack(HEADERS, PADDED, 1, b"\x03" + headers[:4] + bytes(3)),
            pack(CONTINUATION, 0, 1, headers[4:]),
            pack(CONTINUATION, END_HEADERS, 1),
            pack(DATA, PADDED, 1, b"\x02" + body[:2] + bytes(2)),
            pack(GOAWAY, 0, 0, u32(1) + u32(0)),
            pack(WINDOW, 0, 1, u32(1_000)),
            pack(DATA, 0, 1, body[2:]),
            pack(HEADERS, END_HEADERS | END_STREAM | HAS_PRIORITY, 1, bytes(5) + trailers),
            pack(RST, 0, 1, u32(0)),
        ]
    )
    scripted.steps = [(REQUEST, everything)]
    assert call(scripted.path, ECHO, b"request", 20.0) == b"answer"


def test_settings_and_pings_are_answered(call: Call, scripted: Scripted) -> None:
    headers, trailers = _good(Encoder())
    answer = pack(HEADERS, END_HEADERS, 1, headers) + pack(DATA, 0, 1, grpc_message(b"answer"))
    scripted.steps = [
        (PREFACE, setting({}) + pack(PING, 0, 0, b"bdp ping") + pack(PING, 1, 0, b"not mine")),
        (pack(PING, 1, 0, b"bdp ping"), b""),
        (pack(SETTINGS, 1, 0), answer + pack(HEADERS, END_HEADERS | END_STREAM, 1, trailers)),
    ]
    assert call(scripted.path, ECHO, b"request", 20.0) == b"answer"
    assert scripted.received.startswith(PREFACE)
    assert b"not mine" not in scripted.received


@pytest.mark.parametrize(("size", "more"), [(10, 100_000), (2**31 - 1, 65_535)])
def test_a_request_keeps_to_the_windows(
    call: Call, scripted: Scripted, size: int, more: int
) -> None:
    """Settings change what is left by as much as they change what there was."""
    headers, trailers = _good(Encoder())
    answer = pack(HEADERS, END_HEADERS, 1, headers) + pack(DATA, 0, 1, grpc_message(b"answer"))
    scripted.steps = [
        (b"x" * 4_000, setting({4: size})),
        (pack(SETTINGS, 1, 0), pack(WINDOW, 0, 1, u32(more)) + pack(WINDOW, 0, 0, u32(100_000))),
        (pack(DATA, END_STREAM, 1), answer + pack(HEADERS, END_HEADERS | END_STREAM, 1, trailers)),
    ]
    assert call(scripted.path, ECHO, b"x" * 70_000, 20.0) == b"answer"


END = END_HEADERS | END_STREAM
FAILURES: dict[str, tuple[int, str, list[bytes]]] = {
    "closed": (UNAVAILABLE, "closed the connection", []),
    "goaway": (UNAVAILABLE, "going away: later", [pack(GOAWAY, 0, 0, u32(0) + u32(0) + b"later")]),
    "refused": (UNAVAILABLE, "error 7", [pack(RST, 0, 1, u32(7))]),
    "reset": (INTERNAL, "error 2", [pack(RST, 0, 1, u32(2))]),
    "http-error": (
        2,
        "HTTP status 503",
        [pack(HEADERS, END, 1, Encoder().encode([(":status", "503")]))],
    ),
    "no-status": (INTERNAL, "without a status", [pack(HEADERS, END, 1, b"\x88")]),
    "data-ends": (INTERNAL, "without a status", [pack(HEADERS, 4, 1, b"\x88"), pack(DATA, 1, 1)]),
    "no-message": (
        INTERNAL,
        "not one",
        [pack(HEADERS, END, 1, Encoder().encode([(":status", "200"), ("grpc-status", "0")]))],
    ),
    "two-messages": (
        INTERNAL,
        "not one",
        [
            pack(HEADERS, 4, 1, b"\x88") + pack(DATA, 0, 1, grpc_message(b"a") * 2),
            pack(HEADERS, END, 1, Encoder().encode([("grpc-status", "0")])),
        ],
    ),
    "odd-status": (2, "", [pack(HEADERS, END, 1, Encoder().encode([("grpc-status", "x")]))]),
    "broken-block": (INTERNAL, "broken header block", [pack(HEADERS, END, 1, b"\xff\xff\xff")]),
    "long-block": (
        INTERNAL,
        "too large",
        [pack(HEADERS, 0, 1, b""), pack(CONTINUATION, 0, 1, bytes(16_000)) * 5],
    ),
    "long-frame": (INTERNAL, "a frame of", [pack(DATA, 0, 1, bytes(17_000))]),
    "window": (INTERNAL, "broke HTTP/2", [pack(WINDOW, 0, 0, u32(2**31 - 1))]),
    "http1": (INTERNAL, "broke HTTP/2", [b"HTTP/1.1 400 Bad Request\r\n\r\n"]),
}


@pytest.mark.parametrize("name", FAILURES)
def test_calls_that_fail(call: Call, scripted: Scripted, name: str) -> None:
    code, text, answers = FAILURES[name]
    greeting = setting({}) if answers else b""
    scripted.steps = [(REQUEST, greeting + b"".join(answers))]
    scripted.close_after = name == "closed"
    with pytest.raises(CallFailed) as caught:
        call(scripted.path, ECHO, b"request", 20.0)
    assert caught.value.code == code
    assert text in caught.value.message


def test_a_server_that_says_nothing(call: Call, scripted: Scripted) -> None:
    with pytest.raises(CallFailed) as caught:
        call(scripted.path, ECHO, b"request", 0.1)
    assert (caught.value.code, caught.value.message) == (DEADLINE, "no response in 0.1 s")


def test_a_cancelled_call_ends_at_once(scripted: Scripted) -> None:
    async def begin_and_cancel() -> None:
        call = asyncio.ensure_future(unary_call_async(scripted.path, ECHO, b"request", 60.0))
        await asyncio.to_thread(eventually, lambda: b"request" in scripted.received)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(begin_and_cancel())
    eventually(lambda: scripted.gone)


def test_grpcio_is_not_loaded() -> None:
    code = "import sys, gpuplugin.rpc.client, gpuplugin.rpc.fast; "
    code += "assert 'grpc' not in sys.modules and 'google' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_more_is_granted_to_the_server_than_it_has_sent() -> None:
    connection = ClientConnection(max_response_bytes=20_000)
    call = connection.start(Method.of(ECHO), b"", streaming=True)
    connection.output()
    encoder = Encoder()
    connection.receive(pack(SETTINGS, 0, 0, b""))
    connection.receive(pack(HEADERS, END_HEADERS, 1, encoder.encode([(":status", "200")])))
    sent_bytes = 0
    granted_bytes = {0: 0, 1: 0}
    for _ in range(40):
        message = grpc_message(bytes(15_000))
        connection.receive(pack(DATA, 0, 1, message))
        sent_bytes += len(message)
        for kind, stream, payload in frames_of(connection.output()):
            if kind == WINDOW:
                granted_bytes[stream] += int.from_bytes(payload, "big")
        assert max(granted_bytes.values()) <= sent_bytes
    assert min(granted_bytes.values()) > sent_bytes // 2
    assert len(call.responses) == 40


def frames_of(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Kind, stream and payload of each frame."""
    while data:
        size = int.from_bytes(data[:3], "big")
        yield data[3], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]
        data = data[9 + size :]
