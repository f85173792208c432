"""The server's end of a connection, bytes in and bytes out: the short way, and the goodbye."""

from __future__ import annotations

import math

import pytest
from hpack import Encoder

from gpuplugin.rpc import RpcCode, RpcError, Service
from gpuplugin.rpc.h2.calls import ServerCalls, Stream
from gpuplugin.rpc.h2.connection import ServerConnection
from tests.conformance.engines.rawh2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    WINDOW,
    grpc_message,
    pack,
    request_headers,
    setting,
    u32,
)

ECHO, FAIL = "/test/Echo", "/test/Fail"
FRAME_BYTES = 16_384


def _fail(request: bytes) -> bytes:
    raise RpcError(RpcCode.NOT_FOUND, request.decode())


SERVICE = Service("", {ECHO: bytes, FAIL: _fail}, {})


class Peer:
    """A client of a connection, that has called often enough for its headers to be known."""

    def __init__(self, service: Service) -> None:
        self.woken: list[Stream] = []
        self.calls = ServerCalls(service, self.woken.append, lambda: 0.0)
        self.server = ServerConnection(self.calls)
        self.encoder = Encoder()
        self.last = -1
        self.server.receive(PREFACE + setting({}) + pack(SETTINGS, ACK, 0))
        for path in (ECHO, FAIL) * 2:
            self.server.receive(self.request(b"warm", path))
        self.sent()

    def request(self, message: bytes = b"", path: str = ECHO) -> bytes:
        self.last += 2
        headers = self.encoder.encode(request_headers(path))
        body = pack(DATA, END_STREAM, self.last, grpc_message(message))
        return pack(HEADERS, END_HEADERS, self.last, headers) + body

    def acts_on(self, data: bytes) -> bool:
        """Whether the server did more than to respond to whole calls."""
        self.server.receive(data)
        return self.server.acted

    def sent(self) -> bytes:
        return self.calls.outbox.take(1 << 30)


@pytest.mark.parametrize("size", [0, 1, 100, FRAME_BYTES - 5])
def test_a_call_as_the_one_before_goes_the_short_way(size: int) -> None:
    peer = Peer(SERVICE)
    assert not peer.acts_on(peer.request(b"x" * size))
    assert grpc_message(b"x" * size) in peer.sent()
    assert not peer.server.unfinished
    assert not peer.server.timed


def test_calls_that_come_together_go_the_short_way() -> None:
    """Whatever is behind them: the beginning of one more is the next read's."""
    peer = Peer(SERVICE)
    calls = b"".join(peer.request(b"%d" % number) for number in range(5))
    last = peer.request(b"last")
    peer.server.receive(calls + last[:10])
    sent = peer.sent()
    assert [grpc_message(b"%d" % number) in sent for number in range(5)] == [True] * 5
    assert not peer.acts_on(last[10:])
    assert grpc_message(b"last") in peer.sent()


def test_a_response_of_the_short_way_is_whole() -> None:
    peer = Peer(Service("", {ECHO: lambda request: request * 5_000}, {}))
    assert peer.acts_on(peer.request(b"four")), "there is more to send"
    assert len(peer.calls.streams) == 1
    sent = peer.sent()
    assert sent.count(b"four") == 5_000 - 1, "one is cut by the end of a frame"
    assert peer.sent() == b"", "the request had ended, so the stream need not be reset"
    assert not peer.server.unfinished


def test_a_call_that_fails_on_the_short_way_ends_there() -> None:
    peer = Peer(SERVICE)
    for text in (b"no such device", b"no such thing"):
        peer.server.receive(peer.request(text, FAIL))
        assert not peer.server.unfinished
        assert not peer.server.timed
        assert not peer.calls.streams
        assert peer.sent().endswith(text)
    assert not peer.acts_on(peer.request(b"fine"))


@pytest.mark.parametrize(
    "frame", [pack(PING, 0, 0, bytes(8)), setting({}), pack(WINDOW, 0, 0, u32(1))]
)
def test_what_is_no_call_is_acted_on(frame: bytes) -> None:
    peer = Peer(SERVICE)
    assert not peer.acts_on(peer.request(b"one"))
    assert peer.acts_on(frame)
    assert not peer.acts_on(peer.request(b"two"))


def test_a_goodbye_names_the_last_call_and_is_said_once() -> None:
    peer = Peer(SERVICE)
    last = peer.last
    peer.server.drain()
    peer.server.drain()
    assert peer.sent() == pack(GOAWAY, 0, 0, u32(last) + u32(0))
    assert peer.server.ended
    assert peer.calls.next_deadline_s == math.inf


def test_a_handler_that_may_wait_is_run_in_place_unless_there_is_another_one() -> None:
    service = Service("", {ECHO: bytes}, {}, frozenset({ECHO}))
    peer = Peer(service)
    peer.server.receive(peer.request(b"here"))
    peer.calls.pull(peer.woken[-1])
    assert grpc_message(b"here") in peer.sent()
