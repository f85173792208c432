"""gRPC's own rules on the wire: headers, messages, deadlines, statuses."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from gpuplugin.rpc import Service
from gpuplugin.rpc.client import unary_call
from gpuplugin.rpc.fast import FastServer
from gpuplugin.rpc.h2 import calls
from gpuplugin.rpc.publication import Publication
from tests.component.waiting import eventually
from tests.conformance.engines.clients import PATIENCE_S
from tests.conformance.engines.conftest import (
    BOOM,
    ECHO,
    ENGINES,
    FAIL,
    WATCH,
    serving,
)
from tests.conformance.engines.rawh2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    RST,
    grpc_message,
    pack,
    request_headers,
    u32,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuplugin.rpc import Subscription
    from tests.conformance.engines.conftest import Served
    from tests.conformance.engines.rawh2 import Answer

HELLO = grpc_message(b"hello")
OK, UNKNOWN, INVALID, DEADLINE, EXHAUSTED, UNIMPLEMENTED, INTERNAL = (
    "0",
    "2",
    "3",
    "4",
    "8",
    "12",
    "13",
)


def call(served: Served, body: bytes, path: str = ECHO, **changed: str | None) -> Answer:
    """One call on a connection of its own."""
    with served.raw() as client:
        stream = client.stream()
        headers = client.headers(stream, request_headers(path, **changed))
        client.send(headers, pack(DATA, END_STREAM, stream, body))
        return client.finish(stream)


def test_an_answer_has_headers_a_message_and_trailers(served: Served) -> None:
    with served.raw() as client:
        stream = client.begin(ECHO, b"hello")
        answer = client.finish(stream)
        kinds = [one.kind for one in client.seen if one.stream == stream]
    assert kinds == [HEADERS, DATA, HEADERS]
    assert answer[":status"] == "200"
    assert answer["content-type"] == "application/grpc"
    assert answer["grpc-status"] == OK
    assert answer.body == HELLO


def test_an_error_is_one_frame_of_headers(served: Served) -> None:
    with served.raw() as client:
        stream = client.begin(FAIL, b"3 no such device")
        answer = client.finish(stream)
        frames = [one for one in client.seen if one.stream == stream]
    assert [one.kind for one in frames] == [HEADERS]
    assert frames[0].flags == END_STREAM | END_HEADERS
    assert (answer[":status"], answer["content-type"]) == ("200", "application/grpc")
    assert (answer["grpc-status"], answer["grpc-message"]) == (INVALID, "no such device")


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("100 % \u00e4\n\t~", "100 %25 %C3%A4%0A%09~"),
        ("\u20ac \U0001f600", "%E2%82%AC %F0%9F%98%80"),
        ("\x7f\x00", "%7F%00"),
        ("plain: (text) \"quoted\" 'too' [x] {y}", "plain: (text) \"quoted\" 'too' [x] {y}"),
    ],
)
def test_error_texts_are_percent_encoded(served: Served, text: str, encoded: str) -> None:
    assert call(served, grpc_message(f"3 {text}".encode()), FAIL)["grpc-message"] == encoded


def test_a_long_error_text_is_cut(fast: Served) -> None:
    text = call(fast, grpc_message(b"3 " + "\u00e4".encode() * 5_000), FAIL)["grpc-message"]
    assert text is not None
    assert 4_000 < len(text) <= 4_096
    assert len(text) % 3 == 0


def test_the_exception_of_a_handler_is_told_and_logged(
    fast: Served, caplog: pytest.LogCaptureFixture
) -> None:
    answer = call(fast, grpc_message(b"oh no"), BOOM)
    text = "Exception calling application: oh no"
    assert (answer["grpc-status"], answer["grpc-message"]) == (UNKNOWN, text)
    assert "the handler of /test.Conformance/Boom failed" in caplog.text
    assert "ValueError: oh no" in caplog.text


def test_malformed_protobuf_is_the_handlers_to_refuse(served: Served) -> None:
    answer = call(served, grpc_message(b"3 the request is not a v1beta1.AllocateRequest"), FAIL)
    assert answer["grpc-status"] == INVALID


@pytest.mark.parametrize("path", ["/test.Conformance/No", "/no.Service/Echo", "/", "none"])
def test_an_unknown_method(served: Served, path: str) -> None:
    answer = call(served, HELLO, path)
    assert (answer["grpc-status"], answer["grpc-message"]) == (UNIMPLEMENTED, "Method not found!")


@pytest.mark.parametrize(
    "kind", ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"]
)
def test_content_types_of_grpc(served: Served, kind: str) -> None:
    assert call(served, HELLO, content_type=kind)["grpc-status"] == OK


@pytest.mark.parametrize("kind", ["text/html", "application/grpc-web", "application/json", None])
def test_other_content_types(fast: Served, kind: str | None) -> None:
    answer = call(fast, HELLO, content_type=kind)
    assert (answer[":status"], answer["grpc-status"]) == ("415", INVALID)
    assert fast.requests == []


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS"])
def test_other_methods_than_post(fast: Served, method: str) -> None:
    assert call(fast, HELLO, method=method)[":status"] == "405"
    assert fast.requests == []


@pytest.mark.parametrize("te", [None, "gzip"])
def test_no_or_other_te(fast: Served, te: str | None) -> None:
    assert call(fast, HELLO, te=te)["grpc-status"] == OK


def test_a_compression_that_is_not_understood(fast: Served) -> None:
    answer = call(fast, grpc_message(b"?", flag=1), grpc_encoding="gzip")
    assert answer["grpc-status"] == UNIMPLEMENTED
    assert answer["grpc-accept-encoding"] == "identity"


def test_identity_is_no_compression(served: Served) -> None:
    assert call(served, HELLO, grpc_encoding="identity").messages == [b"hello"]


@pytest.mark.parametrize("encoding", [None, "identity"])
def test_a_compressed_message_without_a_compression(served: Served, encoding: str | None) -> None:
    answer = call(served, grpc_message(b"?", flag=1), grpc_encoding=encoding)
    assert answer["grpc-status"] == INTERNAL


def test_a_message_over_the_limit(served: Served) -> None:
    with served.raw() as client:
        stream = client.stream()
        begin = b"\x00" + u32(4 * 1024 * 1024 + 1) + b"the rest is never sent"
        headers = client.headers(stream, request_headers(ECHO))
        client.send(headers, pack(DATA, 0, stream, begin))
        assert client.finish(stream)["grpc-status"] == EXHAUSTED
        client.ping()
        assert client.answers[stream].reset == 0
        assert client.call(ECHO, b"next").messages == [b"next"]


def test_a_message_at_the_limit(served: Served) -> None:
    size = 4 * 1024 * 1024
    assert len(unary_call(served.path, ECHO, bytes(size), PATIENCE_S, 2 * size)) == size


def test_incomplete_requests_are_bounded_for_all_connections_together(
    fast: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "MAX_UNREAD_BYTES", 100_000)
    with ExitStack() as stack:
        clients = [stack.enter_context(fast.raw()) for _ in range(20)]
        for client in clients:
            body = pack(DATA, 0, 1, (b"\x00" + u32(50_000)).ljust(10_000))
            client.send(client.headers(client.stream(), request_headers(ECHO)), body)
            client.ping()
        ended = [one for one in clients if one.answers[1].ended]
        assert len(ended) == 10
        assert {one.answers[1]["grpc-status"] for one in ended} == {EXHAUSTED}


def test_many_incomplete_requests_are_bounded(
    fast: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "MAX_UNREAD_BYTES", 100_000)
    with fast.raw() as client:
        streams = [client.stream() for _ in range(20)]
        for stream in streams:
            body = pack(DATA, 0, stream, (b"\x00" + u32(50_000)).ljust(10_000))
            client.send(client.headers(stream, request_headers(ECHO)), body)
        client.ping()
        ended = [one for one in streams if client.answers[one].ended]
        assert len(ended) == 10
        assert {client.answers[one]["grpc-status"] for one in ended} == {EXHAUSTED}
        open_stream, *others = [one for one in streams if one not in ended]
        client.send(*(pack(RST, 0, one, u32(8)) for one in others))
        client.send(*[pack(DATA, 0, open_stream, bytes(8_001))] * 5)
        assert client.finish(open_stream)["grpc-status"] == OK


@pytest.mark.parametrize("body", [b"", HELLO[:3], HELLO[:-1]])
@pytest.mark.parametrize("path", [ECHO, WATCH])
def test_a_request_without_a_whole_message(served: Served, body: bytes, path: str) -> None:
    assert call(served, body, path)["grpc-status"] == UNIMPLEMENTED


def test_a_request_of_headers_alone(served: Served) -> None:
    with served.raw() as client:
        stream = client.stream()
        flags = END_HEADERS | END_STREAM
        client.send(client.headers(stream, request_headers(ECHO), flags))
        assert client.finish(stream)["grpc-status"] == UNIMPLEMENTED


@pytest.mark.parametrize("more", [HELLO, b"\x00", b"\xff" * 100])
def test_what_follows_the_message_is_ignored(served: Served, more: bytes) -> None:
    assert call(served, HELLO + more).messages == [b"hello"]


def test_a_call_is_answered_before_the_request_has_ended(served: Served) -> None:
    """As soon as there is a message; the client is told to send no more."""
    with served.raw() as client:
        stream = client.stream()
        headers = client.headers(stream, request_headers(ECHO))
        client.send(headers, pack(DATA, 0, stream, HELLO))
        assert client.finish(stream).messages == [b"hello"]
        client.ping()
        assert client.answers[stream].reset == 0


def test_headers_larger_than_the_limit(fast: Served) -> None:
    answer = call(fast, HELLO, x_filler="y" * 16_384)
    assert answer["grpc-status"] == EXHAUSTED


@pytest.mark.parametrize("timeout", ["0n", "0S", "0H"])
def test_a_deadline_that_has_passed(fast: Served, timeout: str) -> None:
    """Not the library's: its timer may be later than a handler that is quick, on a busy machine."""
    answer = call(fast, HELLO, grpc_timeout=timeout)
    assert answer["grpc-status"] == DEADLINE
    assert fast.requests == []


@pytest.mark.parametrize("timeout", ["1H", "10M", "60S", "60000m", "99999999u", "99999999n"])
def test_deadlines_of_all_units(served: Served, timeout: str) -> None:
    if timeout.endswith("n"):
        timeout = "99999999u"
    assert call(served, HELLO, grpc_timeout=timeout)["grpc-status"] == OK


@pytest.mark.parametrize("timeout", ["abc", "5", "S", "-1S", "1.5S", ""])
def test_a_malformed_deadline(served: Served, timeout: str) -> None:
    assert call(served, HELLO, grpc_timeout=timeout)["grpc-status"] == INTERNAL


@pytest.mark.parametrize("engine", ENGINES)
def test_a_deadline_that_passes_while_the_handler_works(engine: str) -> None:
    def work(_request: bytes) -> bytes:
        end_s = time.monotonic() + 0.3
        eventually(lambda: time.monotonic() > end_s)
        return b"late"

    slow = Service("test.Slow", {"Work": work}, {})
    with serving(ENGINES[engine](), [slow]) as served:
        answer = call(served, HELLO, "/test.Slow/Work", grpc_timeout="200m")
    assert answer["grpc-status"] == DEADLINE
    assert answer.messages == []


def test_a_deadline_ends_a_stream(served: Served) -> None:
    served.watched.publish(b"list")
    answer = call(served, HELLO, WATCH, grpc_timeout="100m")
    assert answer.messages in ([b"list"], []), "on a busy machine the list may come too late"
    assert (answer["grpc-status"], answer["grpc-message"]) == (DEADLINE, "Deadline Exceeded")
    assert [name for name, _ in answer.fields].count(":status") == 1
    eventually(lambda: served.watched.open_streams == 0)


def test_a_deadline_is_kept_on_a_connection_that_was_idle(fast: Served) -> None:
    """Nothing looked at the time until the call came."""
    server = fast.server
    assert isinstance(server, FastServer)
    with fast.raw() as client:
        assert client.call(ECHO).messages == [b""]
        for _ in range(2):
            eventually(lambda: not server.checks)
            assert client.call(WATCH, grpc_timeout="100m")["grpc-status"] == DEADLINE


def test_a_deadline_ends_a_call_whose_request_is_incomplete(fast: Served) -> None:
    with fast.raw() as client:
        stream = client.stream()
        headers = client.headers(stream, request_headers(ECHO, grpc_timeout="100m"))
        client.send(headers, pack(DATA, 0, stream, HELLO[:4]))
        assert client.finish(stream)["grpc-status"] == DEADLINE


def test_a_deadline_cuts_off_a_message_that_is_partly_sent(fast: Served) -> None:
    fast.watched.publish(b"x" * 1_000)
    with fast.raw({4: 100}) as client:
        stream = client.begin(WATCH, grpc_timeout="100m")
        assert client.finish(stream).reset == 8
        assert len(client.answers[stream].body) == 100
        eventually(lambda: fast.watched.open_streams == 0)


def test_a_stream_that_ends_without_a_message(served: Served) -> None:
    with served.raw() as client:
        stream = client.begin(WATCH)
        eventually(lambda: served.watched.open_streams == 1)
        served.watched.end_streams()
        assert client.finish(stream)["grpc-status"] == OK


def test_a_stream_that_ends_while_a_message_is_under_way(fast: Served) -> None:
    """What was begun is finished."""
    fast.watched.publish(b"x" * 1_000)
    with fast.raw({4: 100}) as client:
        stream = client.begin(WATCH)
        client.read_until(lambda: len(client.answers[stream].body) == 100)
        fast.watched.end_streams()
        client.send(pack(8, 0, stream, u32(10_000)))
        answer = client.finish(stream)
        assert answer.messages == [b"x" * 1_000]
        assert answer["grpc-status"] == OK


class _Broken:
    closed = False

    def take(self) -> bytes | None:
        raise ValueError("no list")

    def close(self) -> None:
        self.closed = True


def _subscribe_and_break(wake: Callable[[], None]) -> Subscription:
    wake()
    return _Broken()


def _refuse(wake: Callable[[], None]) -> Subscription:
    raise ValueError("no stream")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("method", "text"), [("Take", "no list"), ("Subscribe", "no stream")], ids=["take", "subscribe"]
)
def test_a_subscription_that_raises(engine: str, method: str, text: str) -> None:
    streams = {"Take": _subscribe_and_break, "Subscribe": _refuse}
    with serving(ENGINES[engine](), [Service("test.Broken", {}, streams)]) as served:
        answer = call(served, HELLO, f"/test.Broken/{method}")
    assert answer["grpc-status"] == UNKNOWN
    assert answer["grpc-message"] == f"Exception iterating responses: {text}"


def test_two_services_on_one_socket() -> None:
    for engine in ENGINES.values():
        other = Service(
            "test.Other", {"Echo": lambda _: b"other"}, {"Watch": Publication().subscribe}
        )
        with serving(engine(), [other]) as served:
            assert call(served, HELLO).messages == [b"hello"]
            assert call(served, HELLO, "/test.Other/Echo").messages == [b"other"]
