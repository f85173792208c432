"""What each kind of frame does, sent by a scripted client; broken rules end stream or connection.

Rules that gRPC's core keeps as well are checked on both engines, the rest on the fast one.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hpack import Encoder

from tests.component.waiting import eventually
from tests.conformance.engines.conftest import ECHO, REPEAT, WATCH
from tests.conformance.engines.rawh2 import (
    ACK,
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
    PUSH,
    RST,
    SETTINGS,
    WINDOW,
    grpc_message,
    pack,
    request_headers,
    setting,
    u32,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.engines.conftest import Served
    from tests.conformance.engines.rawh2 import RawClient

PROTOCOL, FLOW, STREAM_CLOSED, FRAME_SIZE, REFUSED, COMPRESSION, CALM = 1, 3, 5, 6, 7, 9, 11
REQUEST = request_headers(ECHO)
HELLO = grpc_message(b"hello")


def assert_answers(client: RawClient) -> None:
    answer = client.call(ECHO, b"still there")
    assert (answer["grpc-status"], answer.messages) == ("0", [b"still there"])


def test_a_client_that_has_said_nothing_is_greeted(served: Served) -> None:
    with served.raw(greet=False) as client:
        assert client.socket.recv(9)[3] == SETTINGS


def test_a_request_in_thousands_of_pieces_is_no_flood(served: Served) -> None:
    """Frames without data are counted, those with some are not."""
    body = grpc_message(bytes(3_000))
    with served.raw() as client:
        stream = client.stream()
        pieces = [pack(DATA, 0, stream, body[at : at + 1]) for at in range(len(body))]
        client.send(client.headers(stream, REQUEST), *pieces, pack(DATA, END_STREAM, stream, b""))
        answer = client.finish(stream)
        assert (answer["grpc-status"], answer.messages) == ("0", [bytes(3_000)])


def test_settings_are_acknowledged_and_a_greeting_comes_first(served: Served) -> None:
    with served.raw({4: 100_000, 99: 7}) as client:
        client.read_until(lambda: any(one.kind == SETTINGS and one.flags for one in client.others))
        assert client.seen[0].kind == SETTINGS
        assert client.seen[0].flags == 0


def test_a_client_that_keeps_no_table_of_headers_is_told_that_none_is_used(served: Served) -> None:
    """RFC 7541, section 4.2: its decoder refuses blocks until it was."""
    with served.raw({1: 0}) as client:
        client.read_until(lambda: any(one.kind == SETTINGS and one.flags for one in client.others))
        client.decoder.max_allowed_table_size = 0
        for _ in range(2):
            assert_answers(client)


def test_the_preface_may_come_in_pieces(served: Served) -> None:
    with served.raw(greet=False) as client:
        client.send_in_pieces(PREFACE + setting({}), 7)
        assert_answers(client)


def test_a_request_may_come_in_pieces(served: Served) -> None:
    with served.raw() as client:
        stream = client.stream()
        frames = client.headers(stream, REQUEST) + pack(DATA, END_STREAM, stream, HELLO)
        client.send_in_pieces(frames, 11)
        assert client.finish(stream).messages == [b"hello"]


def test_every_ping_is_answered_in_order(served: Served) -> None:
    with served.raw() as client:
        pings = [b"%08d" % number for number in range(20)]
        client.send(*(pack(PING, 0, 0, one) for one in pings))
        client.read_until(lambda: sum(one.kind == PING for one in client.others) == 20)
        assert [one.payload for one in client.others if one.kind == PING] == pings
        answers = [one for one in client.others if one.kind == PING]
        assert {(one.flags, one.stream) for one in answers} == {(ACK, 0)}


def test_an_acknowledged_ping_is_not_answered(served: Served) -> None:
    with served.raw() as client:
        client.send(pack(PING, ACK, 0, b"no answr"))
        client.ping()
        assert not [one for one in client.others if one.payload == b"no answr"]


def test_priority_and_unknown_frames_are_ignored(served: Served) -> None:
    with served.raw() as client:
        client.send(
            pack(PRIORITY, 0, 1, u32(0) + b"\x10"),
            pack(PRIORITY, 0, 9, u32(3) + b"\x10"),
            pack(0xBB, 0xFF, 5, b"?" * 100),
            pack(0xEE, 0, 0),
        )
        assert_answers(client)


def test_unknown_flags_are_ignored(fast: Served) -> None:
    with fast.raw() as client:
        stream = client.stream()
        client.send(
            client.headers(stream, REQUEST, END_HEADERS | 0xC0),
            pack(DATA, END_STREAM | 0xF0, stream, HELLO),
        )
        assert client.finish(stream).messages == [b"hello"]


def test_padding_is_taken_off(fast: Served) -> None:
    with fast.raw() as client:
        stream = client.stream()
        block = client.encoder.encode(REQUEST)
        client.send(
            pack(HEADERS, END_HEADERS | PADDED, stream, b"\x07" + block + bytes(7)),
            pack(DATA, PADDED, stream, b"\xff" + HELLO[:4] + bytes(255)),
            pack(DATA, PADDED, stream, b"\x00" + HELLO[4:]),
            pack(DATA, END_STREAM | PADDED, stream, b"\x03" + bytes(3)),
        )
        assert client.finish(stream).messages == [b"hello"]


@pytest.mark.parametrize("kind", [DATA, HEADERS])
def test_more_padding_than_payload(fast: Served, kind: int) -> None:
    with fast.raw() as client:
        stream = client.stream()
        client.send(client.headers(stream, REQUEST))
        client.send(pack(kind, PADDED | END_HEADERS, stream + 2 * (kind == HEADERS), b"\x05four"))
        assert client.goaway() == PROTOCOL


def test_headers_with_a_priority(fast: Served) -> None:
    with fast.raw() as client:
        stream = client.stream()
        block = client.encoder.encode(REQUEST)
        payload = b"\x02" + u32(0) + b"\xff" + block + bytes(2)
        client.send(
            pack(HEADERS, END_HEADERS | HAS_PRIORITY | PADDED, stream, payload),
            pack(DATA, END_STREAM, stream, HELLO),
        )
        assert client.finish(stream).messages == [b"hello"]


def test_a_header_block_in_pieces(served: Served) -> None:
    with served.raw() as client:
        stream = client.stream()
        block = client.encoder.encode(REQUEST)
        pieces = [block[at : at + 7] for at in range(0, len(block), 7)]
        client.send(
            pack(HEADERS, 0, stream, pieces[0]),
            *(pack(CONTINUATION, 0, stream, one) for one in pieces[1:]),
            pack(CONTINUATION, END_HEADERS, stream),
            pack(DATA, END_STREAM, stream, HELLO),
        )
        assert client.finish(stream).messages == [b"hello"]
        assert_answers(client)


def test_several_streams_at_once(served: Served) -> None:
    with served.raw() as client:
        streams = [client.stream() for _ in range(20)]
        client.send(*(client.headers(one, REQUEST) for one in streams))
        for stream in reversed(streams):
            client.send(pack(DATA, 0, stream, HELLO[:3]))
        for stream in streams:
            client.send(pack(DATA, END_STREAM, stream, HELLO[3:]))
        for stream in streams:
            assert client.finish(stream).messages == [b"hello"]


def test_trailers_of_a_request_end_it(served: Served) -> None:
    with served.raw() as client:
        stream = client.stream()
        client.send(client.headers(stream, REQUEST), pack(DATA, 0, stream, HELLO[:6]))
        trailers = client.encoder.encode([("x-checksum", "1")])
        client.send(pack(HEADERS, END_HEADERS | END_STREAM, stream, trailers))
        assert client.finish(stream)["grpc-status"] == "12"
        assert_answers(client)


def test_a_header_table_that_grows_shrinks_and_is_emptied(served: Served) -> None:
    with served.raw() as client:
        for number in range(30):
            if number % 10 == 3:
                client.encoder.header_table_size = 0
            if number % 10 == 5:
                client.encoder.header_table_size = 4096
            if number % 10 == 8:
                client.encoder.header_table_size = 200
            path, answer = ((ECHO, b"7"), (REPEAT, b"x" * 7))[number // 3 % 2]
            for _ in range(3):
                assert client.call(path, b"7").messages == [answer]
            client.call(path, b"7", x_number=f"{number // 2}")


def test_a_table_larger_than_allowed_is_a_compression_error(fast: Served) -> None:
    with fast.raw() as client:
        client.send(pack(HEADERS, END_HEADERS, 1, b"\x3f\xe2\x1f" + Encoder().encode(REQUEST)))
        assert client.goaway() == COMPRESSION


@pytest.mark.parametrize(
    "block",
    [b"\xc7", b"\x80", b"\x00\x05ab", b"\x82\x20", b"\xff" * 20, b"\x00\x83\xff\xff\xff\x00"],
    ids=["no-such-entry", "entry-0", "cut-off", "late-resize", "long-number", "bad-huffman"],
)
def test_a_broken_header_block(fast: Served, block: bytes) -> None:
    with fast.raw() as client:
        client.send(pack(HEADERS, END_HEADERS | END_STREAM, 1, block))
        assert client.goaway() == COMPRESSION


def test_a_reset_in_the_middle_of_a_call(served: Served) -> None:
    with served.raw() as client:
        stream = client.stream()
        client.send(
            client.headers(stream, REQUEST),
            pack(DATA, 0, stream, HELLO[:4]),
            pack(RST, 0, stream, u32(8)),
        )
        client.ping()
        assert_answers(client)
        assert served.requests == [b"still there"]


def test_a_reset_stream_closes_its_subscription(served: Served) -> None:
    served.watched.publish(b"list")
    with served.raw() as client:
        stream = client.begin(WATCH)
        client.read_until(lambda: client.answers[stream].body)
        client.send(pack(RST, 0, stream, u32(8)))
        eventually(lambda: served.watched.open_streams == 0)
        assert_answers(client)


def test_a_connection_that_breaks_closes_its_subscriptions(served: Served) -> None:
    served.watched.publish(b"x" * 4_000_000)
    with served.raw() as client:
        client.begin(WATCH)
        client.begin(WATCH)
        eventually(lambda: served.watched.open_streams == 2)
    eventually(lambda: served.watched.open_streams == 0)


def test_data_on_a_stream_that_was_reset_is_ignored(fast: Served) -> None:
    with fast.raw() as client:
        stream = client.stream()
        client.send(client.headers(stream, request_headers("/no/method")))
        assert client.finish(stream)["grpc-status"] == "12"
        client.ping()
        assert client.answers[stream].reset == 0
        client.send(pack(DATA, 0, stream, HELLO), pack(DATA, END_STREAM, stream, b"x" * 100))
        client.send(client.headers(stream, [("x", "y")], END_HEADERS | END_STREAM))
        assert_answers(client)


def test_data_after_the_end_of_a_stream(fast: Served) -> None:
    with fast.raw() as client:
        stream = client.begin(ECHO)
        client.finish(stream)
        client.send(pack(DATA, 0, stream, b"more"))
        client.ping()
        assert client.answers[stream].reset == STREAM_CLOSED
        assert_answers(client)


def test_data_after_the_end_of_a_request(fast: Served) -> None:
    fast.watched.publish(b"list")
    with fast.raw() as client:
        stream = client.begin(WATCH)
        client.send(pack(DATA, 0, stream, b"more"))
        client.finish(stream)
        assert client.answers[stream].reset == STREAM_CLOSED
        assert fast.watched.open_streams == 0


def test_more_data_than_one_message_is_ignored(served: Served) -> None:
    served.watched.publish(b"list")
    with served.raw() as client:
        stream = client.stream()
        client.send(client.headers(stream, request_headers(WATCH)))
        client.send(pack(DATA, 0, stream, grpc_message(b"")))
        client.read_until(lambda: client.answers[stream].body)
        client.send(pack(DATA, END_STREAM, stream, HELLO + b"garbage"))
        assert_answers(client)
        served.watched.publish(b"more")
        client.read_until(lambda: client.answers[stream].messages == [b"list", b"more"])


def test_too_many_streams_are_refused_and_the_others_served(fast: Served) -> None:
    with fast.raw() as client:
        streams = [client.stream() for _ in range(101)]
        client.send(*(client.headers(one, REQUEST) for one in streams))
        assert client.finish(streams[-1]).reset == REFUSED
        client.send(*(pack(DATA, END_STREAM, one, HELLO) for one in streams[:-1]))
        for stream in streams[:-1]:
            assert client.finish(stream).messages == [b"hello"]
        assert_answers(client)


def test_a_refused_stream_stays_refused_when_there_is_room_again(fast: Served) -> None:
    """Its number is the last one, and not that of a new stream."""
    with fast.raw() as client:
        streams = [client.stream() for _ in range(101)]
        client.send(*(client.headers(one, REQUEST) for one in streams))
        assert client.finish(streams[-1]).reset == REFUSED
        client.send(pack(DATA, END_STREAM, streams[0], HELLO))
        client.finish(streams[0])
        client.send(
            client.headers(streams[-1], REQUEST), pack(DATA, END_STREAM, streams[-1], HELLO)
        )
        client.ping()
        assert client.answers[streams[-1]].fields == []
        assert fast.requests == [b"hello"]


@pytest.mark.parametrize("calls_before", [1, 3], ids=["new-headers", "headers-seen-before"])
def test_the_last_stream_cannot_be_opened_again(fast: Served, calls_before: int) -> None:
    with fast.raw() as client:
        streams = [client.begin(ECHO) for _ in range(calls_before)]
        for stream in streams:
            client.finish(stream)
        last = client.headers(streams[-1], REQUEST)
        client.send(last + pack(DATA, END_STREAM, streams[-1], HELLO))
        assert client.goaway() == STREAM_CLOSED
        assert fast.requests == [b""] * calls_before


def test_a_goaway_of_the_client_lets_its_calls_end(fast: Served) -> None:
    fast.watched.publish(b"first")
    with fast.raw() as client:
        stream = client.begin(WATCH)
        client.read_until(lambda: client.answers[stream].body)
        client.send(pack(GOAWAY, 0, 0, u32(0) + u32(0) + b"bye"))
        client.ping()
        fast.watched.publish(b"second")
        client.read_until(lambda: client.answers[stream].messages == [b"first", b"second"])
        fast.watched.end_streams()
        assert client.finish(stream)["grpc-status"] == "0"
        assert client.goaway() == 0


def _headers(client: RawClient, stream: int, flags: int = END_HEADERS) -> bytes:
    return client.headers(stream, REQUEST, flags)


CONNECTION_ERRORS: dict[str, tuple[int, Callable[[RawClient], list[bytes]]]] = {
    "ping-of-a-stream": (PROTOCOL, lambda _: [pack(PING, 0, 1, bytes(8))]),
    "short-ping": (FRAME_SIZE, lambda _: [pack(PING, 0, 0, bytes(7))]),
    "settings-of-a-stream": (PROTOCOL, lambda _: [pack(SETTINGS, 0, 1)]),
    "odd-settings": (FRAME_SIZE, lambda _: [pack(SETTINGS, 0, 0, bytes(5))]),
    "ack-with-payload": (FRAME_SIZE, lambda _: [pack(SETTINGS, ACK, 0, bytes(6))]),
    "push-enabled-2": (PROTOCOL, lambda _: [setting({2: 2})]),
    "window-setting-too-large": (FLOW, lambda _: [setting({4: 2**31})]),
    "frame-setting-too-small": (PROTOCOL, lambda _: [setting({5: 16_383})]),
    "frame-setting-too-large": (PROTOCOL, lambda _: [setting({5: 2**24})]),
    "window-of-nothing": (PROTOCOL, lambda _: [pack(WINDOW, 0, 0, u32(0))]),
    "window-too-large": (FLOW, lambda _: [pack(WINDOW, 0, 0, u32(2**31 - 1))]),
    "short-window": (FRAME_SIZE, lambda _: [pack(WINDOW, 0, 0, bytes(3))]),
    "window-of-idle-stream": (PROTOCOL, lambda _: [pack(WINDOW, 0, 7, u32(1))]),
    "reset-of-idle-stream": (PROTOCOL, lambda _: [pack(RST, 0, 7, u32(8))]),
    "reset-of-connection": (PROTOCOL, lambda _: [pack(RST, 0, 0, u32(8))]),
    "short-reset": (FRAME_SIZE, lambda c: [_headers(c, 1), pack(RST, 0, 1, bytes(3))]),
    "data-of-connection": (PROTOCOL, lambda _: [pack(DATA, 0, 0, b"x")]),
    "data-of-idle-stream": (PROTOCOL, lambda _: [pack(DATA, 0, 7, b"x")]),
    "data-of-even-stream": (PROTOCOL, lambda c: [_headers(c, 3), pack(DATA, 0, 2, b"x")]),
    "headers-of-connection": (PROTOCOL, lambda c: [_headers(c, 0)]),
    "headers-of-even-stream": (PROTOCOL, lambda c: [_headers(c, 2)]),
    "headers-of-older-stream": (STREAM_CLOSED, lambda c: [_headers(c, 5), _headers(c, 3)]),
    "priority-of-connection": (PROTOCOL, lambda _: [pack(PRIORITY, 0, 0, bytes(5))]),
    "headers-shorter-than-priority": (
        FRAME_SIZE,
        lambda _: [pack(HEADERS, END_HEADERS | HAS_PRIORITY, 1, bytes(4))],
    ),
    "push-promise": (PROTOCOL, lambda _: [pack(PUSH, END_HEADERS, 1, u32(2))]),
    "continuation-of-nothing": (PROTOCOL, lambda _: [pack(CONTINUATION, END_HEADERS, 1)]),
    "continuation-of-another": (
        PROTOCOL,
        lambda c: [_headers(c, 1, 0), pack(CONTINUATION, END_HEADERS, 3)],
    ),
    "interrupted-headers": (PROTOCOL, lambda c: [_headers(c, 1, 0), pack(PING, 0, 0, bytes(8))]),
    "interrupted-by-unknown": (PROTOCOL, lambda c: [_headers(c, 1, 0), pack(0xBB, 0, 0)]),
    "goaway-of-a-stream": (PROTOCOL, lambda _: [pack(GOAWAY, 0, 1, bytes(8))]),
    "short-goaway": (FRAME_SIZE, lambda _: [pack(GOAWAY, 0, 0, bytes(7))]),
    "long-frame": (FRAME_SIZE, lambda c: [_headers(c, 1), pack(DATA, 0, 1, bytes(16_385))]),
    "endless-headers": (
        CALM,
        lambda c: [_headers(c, 1, 0), *[pack(CONTINUATION, 0, 1, bytes(16_000))] * 5],
    ),
}


def test_headers_that_are_not_whole_are_no_call_though_they_were_seen_before(fast: Served) -> None:
    """The block is that of calls that were answered, so that the short way looks at it."""
    with fast.raw() as client:
        for _ in range(3):  # from the second on a block has indices alone
            assert client.call(ECHO, b"hello")["grpc-status"] == "0"
        stream = client.stream()
        client.send(
            client.headers(stream, request_headers(ECHO), 0), pack(DATA, END_STREAM, stream, HELLO)
        )
        assert client.goaway() == PROTOCOL


@pytest.mark.parametrize("name", CONNECTION_ERRORS)
def test_a_broken_rule_ends_the_connection(fast: Served, name: str) -> None:
    code, frames = CONNECTION_ERRORS[name]
    with fast.raw() as client:
        client.send(*frames(client))
        assert client.goaway() == code
    with fast.raw() as client:
        assert_answers(client)


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r!" + setting({}),
        PREFACE + pack(PING, 0, 0, bytes(8)),
        PREFACE + pack(HEADERS, END_HEADERS, 1, b"\x82"),
    ],
    ids=["http1", "wrong-byte", "ping-first", "headers-first"],
)
def test_a_wrong_greeting(fast: Served, greeting: bytes) -> None:
    with fast.raw(greet=False) as client:
        client.send(greeting)
        assert client.goaway() == PROTOCOL


STREAM_ERRORS: dict[str, tuple[int, Callable[[RawClient], list[bytes]]]] = {
    "window-of-nothing": (PROTOCOL, lambda _: [pack(WINDOW, 0, 1, u32(0))]),
    "window-too-large": (FLOW, lambda _: [pack(WINDOW, 0, 1, u32(2**31 - 1))]),
    "short-priority": (FRAME_SIZE, lambda _: [pack(PRIORITY, 0, 1, bytes(4))]),
    "headers-twice": (PROTOCOL, lambda c: [_headers(c, 1)]),
}


@pytest.mark.parametrize("name", STREAM_ERRORS)
def test_a_broken_rule_ends_the_stream_alone(fast: Served, name: str) -> None:
    code, frames = STREAM_ERRORS[name]
    with fast.raw() as client:
        stream = client.stream()
        client.send(_headers(client, stream), *frames(client))
        assert client.finish(stream).reset == code
        assert_answers(client)


MALFORMED = {
    "upper-case": [*REQUEST, ("X-Name", "1")],
    "pseudo-after-regular": [*REQUEST[:2], ("te", "trailers"), *REQUEST[2:]],
    "unknown-pseudo": [(":protocol", "x"), *REQUEST],
    "response-pseudo": [(":status", "200"), *REQUEST],
    "pseudo-twice": [REQUEST[0], *REQUEST],
    "no-method": REQUEST[1:],
    "no-path": [one for one in REQUEST if one[0] != ":path"],
    "empty-path": [(key, "" if key == ":path" else value) for key, value in REQUEST],
    "no-scheme": [one for one in REQUEST if one[0] != ":scheme"],
    "connection": [*REQUEST, ("connection", "close")],
    "transfer-encoding": [*REQUEST, ("transfer-encoding", "chunked")],
    "empty-name": [*REQUEST, ("", "x")],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_headers_end_the_stream(fast: Served, name: str) -> None:
    with fast.raw() as client:
        stream = client.stream()
        client.send(client.headers(stream, MALFORMED[name], END_HEADERS | END_STREAM))
        assert client.finish(stream).reset == PROTOCOL
        assert_answers(client)


def test_a_request_needs_no_authority(fast: Served) -> None:
    with fast.raw() as client:
        assert client.call(ECHO, b"hello", authority=None).messages == [b"hello"]


FLOODS: dict[str, bytes] = {
    "pings": pack(PING, 0, 0, bytes(8)),
    "acknowledged-pings": pack(PING, ACK, 0, bytes(8)),
    "settings": setting({}),
    "settings-acks": pack(SETTINGS, ACK, 0),
    "priorities": pack(PRIORITY, 0, 1, bytes(5)),
    "unknown": pack(0xBB, 0, 0),
    "windows": pack(WINDOW, 0, 0, u32(1)),
    "resets": pack(RST, 0, 1, u32(8)),
    "empty-data": pack(DATA, 0, 3),
    "closed-stream": pack(WINDOW, 0, 1, u32(1)),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_frames_without_progress(fast: Served, name: str) -> None:
    with fast.raw() as client:
        client.send(_headers(client, 1), pack(RST, 0, 1, u32(8)), _headers(client, 3))
        client.ping()
        with suppress(ConnectionError):
            client.send(FLOODS[name] * 20_000)
        assert client.goaway() == CALM


def test_progress_once_is_no_licence_for_a_flood(fast: Served) -> None:
    with fast.raw() as client:
        assert client.call(ECHO, b"hello")["grpc-status"] == "0"
        with suppress(ConnectionError):
            client.send(FLOODS["acknowledged-pings"] * 20_000)
        assert client.goaway() == CALM


def test_headers_may_have_a_priority_and_nothing_else(fast: Served) -> None:
    """Five bytes are enough for it; that such a request lacks everything is the stream's matter."""
    with fast.raw() as client:
        stream = client.stream()
        flags = END_HEADERS | HAS_PRIORITY | END_STREAM
        client.send(pack(HEADERS, flags, stream, bytes(5)))
        assert client.finish(stream).reset == PROTOCOL
        assert_answers(client)


def test_a_flood_of_empty_continuations(fast: Served) -> None:
    with fast.raw() as client:
        with suppress(ConnectionError):
            client.send(_headers(client, 1, 0), pack(CONTINUATION, 0, 1) * 20_000)
        assert client.goaway() == CALM


def test_a_flood_of_streams_that_are_reset_at_once(fast: Served) -> None:
    with fast.raw() as client:
        with suppress(ConnectionError):
            for stream in range(1, 20_001, 2):
                client.send(_headers(client, stream), pack(RST, 0, stream, u32(8)))
        assert client.goaway() == CALM


def test_a_block_that_grows_without_end_when_decoded(fast: Served) -> None:
    """One entry of 4,000 bytes, named by one byte over and over."""
    with fast.raw() as client:
        block = Encoder().encode([("a", "b" * 3_900)], huffman=False)
        client.send(pack(HEADERS, END_HEADERS, 1, block + b"\xbe" * 10_000))
        assert client.goaway() == CALM


def test_frames_without_progress_are_fine_between_calls(fast: Served) -> None:
    with fast.raw() as client:
        for _ in range(5):
            client.send(pack(PING, ACK, 0, bytes(8)) * 1_000)
            assert_answers(client)
