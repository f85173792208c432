"""Calls that repeat the one before byte for byte: they go the short way, and every rule holds."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.conformance.engines.conftest import ECHO, REPEAT
from tests.conformance.engines.rawh2 import (
    DATA,
    END_STREAM,
    GOAWAY,
    PADDED,
    SETTINGS,
    WINDOW,
    grpc_message,
    pack,
    request_headers,
    u32,
)

if TYPE_CHECKING:
    from tests.conformance.engines.conftest import Served
    from tests.conformance.engines.rawh2 import RawClient

PROTOCOL, STREAM_CLOSED, REFUSED = 1, 5, 7
TIMES = 4
"""Two calls until the table of headers is full, and some with headers that are known."""


def repeat(client: RawClient, stream: int, path: str = ECHO, message: bytes = b"again") -> None:
    """Send a call in one write; the same bytes each time, but for the stream."""
    headers = client.headers(stream, request_headers(path))
    client.send(headers, pack(DATA, END_STREAM, stream, grpc_message(message)))


def warm_up(client: RawClient) -> int:
    """Call often enough for the headers to be known; the last stream."""
    streams = [client.stream() for _ in range(TIMES)]
    for stream in streams:
        repeat(client, stream)
        assert client.finish(stream).messages == [b"again"]
    return streams[-1]


@pytest.mark.parametrize("many", [1, 40])
def test_repeated_calls_are_answered(served: Served, many: int) -> None:
    with served.raw() as client:
        warm_up(client)
        streams = [client.stream() for _ in range(many)]
        frames = pack(DATA, END_STREAM, 0, grpc_message(b"again"))
        client.send(
            *(
                client.headers(one, request_headers(ECHO)) + frames[:5] + u32(one) + frames[9:]
                for one in streams
            )
        )
        for stream in streams:
            assert client.finish(stream).messages == [b"again"]
    assert served.requests == [b"again"] * (TIMES + many)


def test_what_differs_is_seen(served: Served) -> None:
    """In the message, of the same length or not, and in the path."""
    with served.raw() as client:
        warm_up(client)
        for message in (b"other", b"other and longer", b"again"):
            assert client.call(ECHO, message).messages == [message]
        assert client.call(REPEAT, b"3").messages == [b"xxx"]
        warm_up(client)


@pytest.mark.parametrize(
    ("step", "code"),
    [(0, STREAM_CLOSED), (-2, STREAM_CLOSED), (1, PROTOCOL), (3, PROTOCOL), (2**31, STREAM_CLOSED)],
)
def test_a_repeated_call_on_a_wrong_stream(fast: Served, step: int, code: int) -> None:
    with fast.raw() as client:
        last = warm_up(client)
        repeat(client, last + step)
        assert client.goaway() == code
    assert len(fast.requests) == TIMES


def test_a_message_longer_than_its_frame_takes_nothing_of_the_next_one(fast: Served) -> None:
    with fast.raw() as client:
        warm_up(client)
        stream = client.stream()
        prefix = b"\0" + u32(5 * 256 - 5)
        unknown = pack(0xBB, 0, 0, bytes(5 * 256))
        headers = client.headers(stream, request_headers(ECHO))
        client.send(headers + pack(DATA, END_STREAM, stream, prefix) + unknown)
        assert client.finish(stream)["grpc-status"] == "12"
        assert len(fast.requests) == TIMES


def test_a_repeated_call_after_a_goodbye(fast: Served) -> None:
    with fast.raw({4: 2}) as client:
        waiting = client.begin(ECHO, b"keeps the connection open")
        for _ in range(TIMES):
            repeat(client, client.stream())
        client.send(pack(GOAWAY, 0, 0, u32(0) + u32(0)))
        late = client.stream()
        repeat(client, late)
        assert client.finish(late).reset == REFUSED
        client.send(pack(WINDOW, 0, waiting, u32(100)))
        assert client.finish(waiting).messages == [b"keeps the connection open"]


def test_a_repeated_call_while_the_server_stops(fast: Served) -> None:
    with fast.raw({4: 2}) as client:
        waiting = client.begin(ECHO, b"keeps the connection open")
        for _ in range(TIMES):
            repeat(client, last := client.stream())
            client.read_until(partial(_has, client, last, 2))
        stopping = threading.Thread(target=fast.server.stop, args=(20,))
        stopping.start()
        client.read_until(lambda: any(one.kind == GOAWAY for one in client.others))
        late = client.stream()
        repeat(client, late)
        assert client.finish(late).reset == REFUSED
        client.send(pack(SETTINGS, 0, 0, b"\x00\x04" + u32(100)))
        assert client.finish(waiting).messages == [b"keeps the connection open"]
        stopping.join()


def test_a_repeated_answer_waits_for_the_windows(fast: Served) -> None:
    with fast.raw() as client:
        warm_up(client)
        client.send(pack(SETTINGS, 0, 0, b"\x00\x04" + u32(3)))
        client.ping()
        for _ in range(2):
            stream = client.stream()
            repeat(client, stream)
            client.read_until(partial(_has, client, stream, 3))
            client.ping()
            assert len(client.answers[stream].body) == 3
            client.send(pack(WINDOW, 0, stream, u32(100)))
            assert client.finish(stream).messages == [b"again"]


def _has(client: RawClient, stream: int, count: int) -> bool:
    return len(client.answers[stream].body) == count


def test_repeated_calls_are_granted_what_they_send(fast: Served) -> None:
    """More in all than the window of the connection, which never is larger than 8 MiB."""
    with fast.raw() as client:
        client.send(pack(WINDOW, 0, 0, u32(2**30)))
        message = b"y" * 16_000
        for _ in range(800):
            stream = client.stream()
            repeat(client, stream, ECHO, message)
            assert client.finish(stream).messages == [message]
        granted = sum(one.number for one in client.others if one.kind == WINDOW and not one.stream)
        sent = 800 * len(grpc_message(message))
        assert sent <= 65_535 + granted <= sent + 8 * 1024 * 1024


def test_padding_is_granted_back(fast: Served) -> None:
    with fast.raw() as client:
        stream = client.stream()
        body = grpc_message(b"hello")
        client.send(client.headers(stream, request_headers(ECHO)))
        for byte in body[:-1]:
            client.send(pack(DATA, PADDED, stream, bytes((200, byte)) + bytes(200)))
        client.send(pack(DATA, PADDED | END_STREAM, stream, bytes((200, body[-1])) + bytes(200)))
        assert client.finish(stream).messages == [b"hello"]
        granted = [one.number for one in client.others if one.kind == WINDOW and one.stream]
        assert granted == [201] * (len(body) - 1)
