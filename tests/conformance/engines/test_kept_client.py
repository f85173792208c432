"""The client's kept connection: against both engines, and bytes that any server may send."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.rpc.client import CallFailed, Connection, ConnectionFailed, Method
from gpuplugin.rpc.h2.client import ClientConnection
from tests.component.waiting import eventually
from tests.conformance.engines.conftest import ECHO, FAIL, REPEAT, WATCH
from tests.conformance.engines.rawh2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PUSH,
    RST,
    SETTINGS,
    WINDOW,
    grpc_message,
    pack,
    setting,
    u32,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gpuplugin.rpc.client import ClientCall
    from tests.conformance.engines.conftest import Served

ECHO_M, FAIL_M, REPEAT_M, WATCH_M = map(Method.of, (ECHO, FAIL, REPEAT, WATCH))
MAX_BYTES = 16 * 1024 * 1024
END = END_HEADERS | END_STREAM


@pytest.fixture
def connection(served: Served) -> Iterator[Connection]:
    with Connection(served.path, 20.0, MAX_BYTES) as made:
        yield made


def test_responses_that_repeat_and_responses_that_differ(
    connection: Connection, served: Served
) -> None:
    requests = [b"a", b"a", b"a", b"b", b"a", b"", b"", b"longer than before", b"a", b"a"] * 5
    assert [connection.call(ECHO_M, request) for request in requests] == requests
    assert served.requests == requests


def test_errors_have_code_and_text_and_harm_no_other_call(connection: Connection) -> None:
    for text in ("no such device", "no such device", "GPU 5 + 3 %"):
        assert connection.call(ECHO_M, b"fine") == b"fine"
        with pytest.raises(CallFailed) as caught:
            connection.call(FAIL_M, f"3 {text}".encode())
        assert (caught.value.code, caught.value.message) == (3, text)
    with pytest.raises(CallFailed) as caught:
        connection.call(Method.of("/t.Test/Nothing"), b"")
    assert caught.value.code == 12
    assert connection.call(ECHO_M, b"fine") == b"fine"


@pytest.mark.parametrize("size", [1, 16_384, 65_531, 65_536, 1_000_000, 4_000_000])
def test_large_messages_both_ways(connection: Connection, size: int) -> None:
    """Beyond a frame, the first window of a stream and the one of the connection."""
    assert connection.call(ECHO_M, bytes(size)) == bytes(size)
    assert connection.call(REPEAT_M, str(size).encode()) == b"x" * size
    assert connection.call(ECHO_M, bytes(size)) == bytes(size)


def test_a_request_beyond_the_windows_is_sent_before_anybody_waits_for_its_end(
    connection: Connection, served: Served
) -> None:
    call = connection.start(ECHO_M, bytes(3_000_000))
    assert not call.rest
    eventually(lambda: served.requests == [bytes(3_000_000)])
    while not call.ended:
        connection.ended()
    assert call.result() == bytes(3_000_000)


def test_windows_are_kept_open_over_many_calls(served: Served) -> None:
    """More bytes in all than a window has, both ways."""
    request = bytes(40_000)
    with Connection(served.path, 20.0, len(request)) as connection:
        for _ in range(50):
            assert connection.call(ECHO_M, request) == request


def test_too_large_a_response_ends_its_call_alone(served: Served) -> None:
    with Connection(served.path, 20.0, 100_000) as connection:
        for _ in range(20):
            with pytest.raises(CallFailed) as caught:
                connection.call(REPEAT_M, b"100001")
            assert caught.value.code == 8
            assert connection.call(REPEAT_M, b"100000") == b"x" * 100_000


def test_calls_in_flight_at_once(connection: Connection) -> None:
    started = [connection.start(ECHO_M, bytes([n]) * n) for n in range(1, 13)]
    ended: list[ClientCall] = []
    while len(ended) < len(started):
        ended += connection.ended()
    assert sorted(ended, key=started.index) == started
    assert [call.result() for call in started] == [bytes([n]) * n for n in range(1, 13)]


def test_a_stream_beside_calls_is_followed_and_cancelled(
    connection: Connection, served: Served
) -> None:
    served.watched.publish(b"first")
    stream = connection.start(WATCH_M, b"", streaming=True)
    assert connection.next_response(stream) == b"first"
    served.watched.publish(bytes(300_000))
    assert connection.next_response(stream) == bytes(300_000)
    assert connection.call(ECHO_M, b"between") == b"between"
    connection.cancel(stream)
    connection.cancel(stream)
    eventually(lambda: served.watched.open_streams == 0)
    assert connection.call(ECHO_M, b"after") == b"after"


def test_a_stream_has_no_limit_but_that_of_its_messages(served: Served) -> None:
    with Connection(served.path, 20.0, 50_000) as connection:
        stream = connection.start(WATCH_M, b"", streaming=True)
        for number in range(20):
            message = bytes([number]) * 50_000
            served.watched.publish(message)
            assert connection.next_response(stream) == message


def test_the_end_of_a_stream(connection: Connection, served: Served) -> None:
    served.watched.publish(b"only")
    stream = connection.start(WATCH_M, b"", streaming=True)
    assert connection.next_response(stream) == b"only"
    served.watched.end_streams()
    assert connection.next_response(stream) is None
    failed = connection.start(Method.of("/t.Test/Nothing"), b"", streaming=True)
    with pytest.raises(CallFailed):
        connection.next_response(failed)


def test_another_thread_can_end_a_wait(connection: Connection, served: Served) -> None:
    stream = connection.start(WATCH_M, b"", streaming=True)
    eventually(lambda: served.watched.open_streams == 1)
    timer = threading.Timer(0.05, connection.interrupt)
    timer.start()
    with pytest.raises(ConnectionFailed):
        connection.next_response(stream)
    timer.join()
    connection.close()
    connection.interrupt()


def test_a_server_that_goes_away(tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailed, match=r"cannot use .*none\.sock"):
        Connection(tmp_path / "none.sock")
    path = tmp_path / "deaf.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with (
            Connection(path, timeout_s=0.05) as connection,
            pytest.raises(ConnectionFailed, match=r"no response from .* in 0\.05 s"),
        ):
            connection.call(ECHO_M, b"")
        listener.accept()[0].close()
        with Connection(path) as connection:
            listener.accept()[0].close()
            with pytest.raises(ConnectionFailed):
                connection.call(ECHO_M, b"")


def _response(stream_id: int, encoder: Encoder, status: str = "0") -> bytes:
    headers = encoder.encode([(":status", "200"), ("content-type", "application/grpc")])
    trailers = encoder.encode([("grpc-status", status), ("grpc-message", "")])
    return (
        pack(HEADERS, END_HEADERS, stream_id, headers)
        + pack(DATA, 0, stream_id, grpc_message(b"response"))
        + pack(HEADERS, END, stream_id, trailers)
    )


def test_the_same_bytes_mean_something_else_once_the_table_has_changed() -> None:
    encoder, connection = Encoder(), ClientConnection(100)
    found, sent = [], []
    for status in ("0", "0", "0", "3", "3", "0", "0"):
        call = connection.start(ECHO_M, b"")
        trailers = encoder.encode([("grpc-status", status)])
        sent.append(trailers)
        ended = connection.receive(
            pack(HEADERS, END_HEADERS, call.stream_id, b"\x88")
            + pack(DATA, 0, call.stream_id, grpc_message(b"response"))
            + pack(HEADERS, END, call.stream_id, trailers)
        )
        assert ended == [call]
        found.append(call.error.code if call.error else 0)
    assert sent[1] == sent[4], "or nothing was tested"
    assert found == [0, 0, 0, 3, 3, 0, 0]


@given(st.lists(st.integers(1, 60), max_size=40))
def test_frames_may_come_in_any_split(sizes: list[int]) -> None:
    """All that a server may send between and in two responses."""
    encoder, connection = Encoder(), ClientConnection(100)
    first = connection.start(ECHO_M, b"request")
    second = connection.start(ECHO_M, b"request")
    stream = connection.start(WATCH_M, b"", streaming=True)
    connection.output()
    body = grpc_message(b"one") + grpc_message(b"") + grpc_message(b"three")
    headers = encoder.encode([(":status", "200")])
    data = b"".join(
        [
            setting({4: 100_000, 5: 20_000}),
            pack(HEADERS, 0, stream.stream_id, headers[:1]),
            pack(CONTINUATION, END_HEADERS, stream.stream_id, headers[1:]),
            pack(PING, 0, 0, b"8 bytes!"),
            pack(DATA, 0, stream.stream_id, body[:3]),
            _response(second.stream_id, encoder),
            pack(DATA, PADDED, stream.stream_id, b"\x02" + body[3:9] + bytes(2)),
            pack(WINDOW, 0, 0, u32(1000)),
            pack(WINDOW, 0, first.stream_id, u32(1000)),
            pack(0xCC, 0, 0, b"unknown"),
            _response(first.stream_id, encoder, "5"),
            pack(RST, 0, first.stream_id, u32(0)),
            pack(DATA, 0, stream.stream_id, body[9:]),
        ]
    )
    ended: list[ClientCall] = []
    for size in sizes:
        if data:
            ended += connection.receive(data[:size])
            data = data[size:]
    if data:
        ended += connection.receive(data)

    assert ended == [second, first]
    assert second.result() == b"response"
    assert first.error is not None
    assert first.error.code == 5
    assert stream.responses == [b"one", b"", b"three"]
    assert not stream.ended
    sent = connection.output()
    assert pack(PING, ACK, 0, b"8 bytes!") in sent
    assert pack(SETTINGS, ACK, 0) in sent


@pytest.mark.parametrize("how", ["cancelled", "reset", "answered"])
def test_a_call_that_ended_sends_no_more_of_its_request(how: str) -> None:
    connection = ClientConnection(100)
    connection.receive(setting({4: 100_000}))
    connection.output()
    call = connection.start(ECHO_M, bytes(80_000))
    connection.output()
    assert call.rest, "the connection's window holds it back"
    if how == "cancelled":
        connection.cancel(call)
    elif how == "reset":
        connection.receive(pack(RST, 0, call.stream_id, u32(0)))
    else:
        connection.receive(_response(call.stream_id, Encoder()))
    reset = b"" if how == "reset" else pack(RST, 0, call.stream_id, u32(8))
    assert connection.output() == reset
    connection.receive(pack(WINDOW, 0, 0, u32(100_000)))
    assert connection.output() == b""


def test_what_is_left_when_the_server_is_going_away() -> None:
    """The calls that it began are ended by it, later ones have failed, no more can be made."""
    encoder, connection = Encoder(), ClientConnection(100)
    first, second = (connection.start(ECHO_M, b"request") for _ in range(2))
    assert connection.receive(pack(GOAWAY, 0, 0, u32(1) + u32(0) + b"enough")) == [second]
    with pytest.raises(ConnectionFailed, match="going away: enough"):
        second.result()
    with pytest.raises(ConnectionFailed, match="going away: enough"):
        connection.start(ECHO_M, b"request")
    assert connection.receive(_response(1, encoder)) == [first]
    assert first.result() == b"response"


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        pytest.param(pack(HEADERS, 0, 1) + pack(PING, 0, 0, bytes(8)), "header block", id="torn"),
        pytest.param(pack(HEADERS, 0, 1) + pack(HEADERS, 0, 1), "header block", id="again"),
        pytest.param(
            pack(HEADERS, 0, 1) + pack(CONTINUATION, END_HEADERS, 3), "header block", id="other's"
        ),
        pytest.param(pack(CONTINUATION, END_HEADERS, 1), "of nothing", id="continuation"),
        pytest.param(pack(DATA, 0, 0), "on stream 0", id="data of no stream"),
        pytest.param(pack(SETTINGS, 0, 0, b"x"), "wrong length", id="settings"),
        pytest.param(pack(GOAWAY, 0, 0, b""), "wrong length", id="goaway"),
        pytest.param(pack(PUSH, END_HEADERS, 1, u32(2)), "PUSH_PROMISE", id="push"),
        pytest.param(b"", "closed the connection", id="the end"),
    ],
)
def test_a_broken_connection_fails_all_calls_and_takes_no_more(frames: bytes, text: str) -> None:
    connection = ClientConnection(100)
    calls = [connection.start(ECHO_M, b"request") for _ in range(2)]
    with pytest.raises(ConnectionFailed, match=text) as caught:
        connection.receive(frames)
    assert [call.error for call in calls] == [caught.value] * 2
    with pytest.raises(ConnectionFailed, match=text):
        connection.start(ECHO_M, b"request")


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 41), st.sampled_from([0, 1, 3, 9]),
                          st.binary(max_size=12)), max_size=12))  # fmt: skip
def test_any_frames_end_in_a_result_or_in_a_failure(
    sent: list[tuple[int, int, int, bytes]],
) -> None:
    connection = ClientConnection(100)
    calls = [connection.start(ECHO_M, b"request"), connection.start(WATCH_M, b"", streaming=True)]
    try:
        for kind, flags, stream_id, payload in sent:
            connection.receive(pack(kind, flags, stream_id, payload))
    except ConnectionFailed:
        assert all(call.ended for call in calls)
    assert connection.output()


@pytest.mark.parametrize("length", [101, 2**16 + 1, 2**24 + 1, 2**32 - 1])
def test_a_message_of_any_length_that_is_too_long_ends_its_call(length: int) -> None:
    connection = ClientConnection(100)
    call = connection.start(ECHO_M, b"request")
    connection.receive(pack(SETTINGS, 0, 0) + pack(DATA, 0, 1, b"\0" + u32(length) + b"x"))
    assert call.error is not None
    assert call.error.code == 8
