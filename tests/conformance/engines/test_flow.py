"""Flow control in both directions, and peers that read slowly or not at all."""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING

import pytest

from gpuplugin.rpc import fast as engine_fast
from gpuplugin.rpc.h2 import connection
from tests.component.waiting import eventually
from tests.conformance.engines.conftest import ECHO, REPEAT, WATCH
from tests.conformance.engines.rawh2 import (
    DATA,
    END_STREAM,
    PING,
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

FLOW = 3
LIST = b"x" * 4_000_000
WIDE = {4: 2**31 - 1}


def body_length(client: RawClient, stream: int) -> int:
    return len(client.answers[stream].body)


def widen(client: RawClient, stream: int, more: int) -> None:
    client.send(pack(WINDOW, 0, stream, u32(more)))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """To be called with clients: the server's seconds of waiting are fractions of one from then on.

    Their connections are open by then, however long that took on a busy machine.
    """

    def become_so(*clients: RawClient) -> None:
        for client in clients:
            client.ping()
        monkeypatch.setattr(engine_fast, "STALL_S", 0.2)
        monkeypatch.setattr(engine_fast, "CHECK_S", 0.05)
        monkeypatch.setattr(connection, "HELD_BACK_S", 0.05)

    return become_so


def test_an_answer_waits_for_the_window_of_its_stream(served: Served) -> None:
    with served.raw({4: 10}) as client:
        stream = client.begin(REPEAT, b"100")
        client.read_until(lambda: body_length(client, stream) == 10)
        client.ping()
        assert body_length(client, stream) == 10
        widen(client, stream, 50)
        client.read_until(lambda: body_length(client, stream) == 60)
        widen(client, stream, 1_000)
        assert client.finish(stream).messages == [b"x" * 100]


def test_an_answer_waits_for_the_window_of_the_connection(served: Served) -> None:
    with served.raw(WIDE) as client:
        stream = client.begin(REPEAT, b"100000")
        client.read_until(lambda: body_length(client, stream) == 65_535)
        client.ping()
        assert body_length(client, stream) == 65_535
        widen(client, 0, 100_000)
        assert client.finish(stream).messages == [b"x" * 100_000]


def test_a_window_that_the_settings_change_later(served: Served) -> None:
    with served.raw({4: 10}) as client:
        stream = client.begin(REPEAT, b"100")
        client.read_until(lambda: body_length(client, stream) == 10)
        client.send(setting({4: 40}))
        client.read_until(lambda: body_length(client, stream) == 40)
        client.send(setting({4: 20}))
        widen(client, stream, 15)
        client.ping()
        assert body_length(client, stream) == 40
        client.send(setting({4: 1000}))
        assert client.finish(stream).messages == [b"x" * 100]


def test_a_setting_that_overflows_a_window(fast: Served) -> None:
    with fast.raw({4: 100_000}) as client:
        stream = client.begin(REPEAT, b"200000")
        client.read_until(lambda: body_length(client, stream) == 65_535)
        left = 100_000 - 65_535
        widen(client, stream, 2**31 - 1 - left - 10)
        client.ping()
        client.send(setting({4: 100_011}))
        assert client.goaway() == FLOW


def test_no_frame_is_longer_than_the_peer_takes(served: Served) -> None:
    with served.raw(WIDE) as client:
        widen(client, 0, 2**30)
        stream = client.begin(REPEAT, b"1000000")
        assert client.finish(stream).messages == [b"x" * 1_000_000]
        assert max(len(one.payload) for one in client.seen) <= 16_384


def test_a_call_is_answered_while_a_long_list_waits_for_its_stream(served: Served) -> None:
    served.watched.publish(LIST)
    with served.raw({4: 1_000}) as client:
        stream = client.begin(WATCH)
        client.read_until(lambda: body_length(client, stream) == 1_000)
        assert client.call(ECHO, b"beside").messages == [b"beside"]
        widen(client, 0, 2**30)
        client.send(setting(WIDE))
        client.read_message(stream, LIST)


def test_a_call_is_answered_while_a_long_list_waits_for_the_connection(fast: Served) -> None:
    """Lists leave some of the connection's window to answers; grpcio's do not."""
    fast.watched.publish(LIST)
    with fast.raw(WIDE) as client:
        stream = client.begin(WATCH)
        client.read_until(lambda: body_length(client, stream) >= 65_535 - 16_384)
        client.ping()
        assert client.call(ECHO, b"beside").messages == [b"beside"]
        widen(client, 0, 2**30)
        client.read_message(stream, LIST)


def test_nobody_is_woken_over_and_over_for_a_peer_that_does_not_read(
    fast: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    rings: list[int] = []
    ring = os.eventfd_write

    def counted(bell: int, value: int) -> None:
        rings.append(value)
        ring(bell, value)

    monkeypatch.setattr(os, "eventfd_write", counted)
    fast.watched.publish(LIST)
    with fast.raw(WIDE) as stuck, fast.raw() as other:
        widen(stuck, 0, 2**30)
        stream = stuck.begin(WATCH)
        eventually(lambda: bool(rings))
        for _ in range(100):
            other.call(ECHO, b"beside")
        assert len(rings) < 20
        stuck.read_message(stream, LIST)


def test_the_reserve_is_given_up_to_a_peer_that_grants_no_more(
    impatient: Callable[..., None], fast: Served
) -> None:
    fast.watched.publish(b"x" * 65_530)
    with fast.raw(WIDE) as client:
        impatient(client)
        stream = client.begin(WATCH)
        client.read_until(lambda: client.answers[stream].messages == [b"x" * 65_530])


def test_a_list_that_just_fits_beside_the_reserve_goes_out_whole(
    fast: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HELD_BACK_S", 1000.0)
    message = b"x" * (65_535 - 16_384 - 5)
    fast.watched.publish(message)
    with fast.raw(WIDE) as client:
        client.read_message(client.begin(WATCH), message)


def test_the_reserve_is_kept_while_a_list_waits_for_its_stream(
    fast: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list that just fits its stream's window is not held back by the connection's."""
    monkeypatch.setattr(engine_fast, "CHECK_S", 0.05)
    monkeypatch.setattr(connection, "HELD_BACK_S", 0.0)
    beside = 65_535 - 16_384
    fast.watched.publish(b"x" * 65_000)
    with fast.raw({4: beside}) as client:
        stream = client.begin(WATCH)
        client.read_until(lambda: body_length(client, stream) == beside)
        for _ in range(2):  # whose reserves are given up: all connections were looked at between
            with fast.raw(WIDE) as other:
                other.read_message(other.begin(WATCH), b"x" * 65_000)
        monkeypatch.setattr(connection, "HELD_BACK_S", 1000.0)
        widen(client, stream, 10_000)
        client.ping()
        client.ping()  # the first answer goes before what the list has to send
        assert body_length(client, stream) == beside


def test_an_answer_gets_what_is_granted_before_a_list_does(fast: Served) -> None:
    fast.watched.publish(LIST)
    with fast.raw(WIDE) as client:
        watch = client.begin(WATCH)
        client.read_until(lambda: body_length(client, watch) == 65_535 - 16_384)
        call = client.begin(REPEAT, b"100000")
        client.read_until(lambda: body_length(client, call) == 16_384)
        widen(client, 0, 100_000)
        assert client.finish(call).messages == [b"x" * 100_000]
        widen(client, 0, 2**30)
        client.read_message(watch, LIST)


def test_a_slow_stream_gets_what_was_begun_and_then_the_newest(served: Served) -> None:
    served.watched.publish(b"a" * 1_000)
    with served.raw({4: 500}) as client:
        stream = client.begin(WATCH)
        client.read_until(lambda: body_length(client, stream) == 500)
        for letter in (b"b", b"c", b"d"):
            served.watched.publish(letter * 1_000)
        widen(client, stream, 100_000)
        newest = [b"a" * 1_000, b"d" * 1_000]
        client.read_until(lambda: client.answers[stream].messages[-1:] == newest[-1:])
        assert client.answers[stream].messages[0] == newest[0]
        assert len(client.answers[stream].messages) <= 3


def test_two_lists_share_a_connection(served: Served) -> None:
    served.watched.publish(LIST)
    with served.raw(WIDE) as client:
        first, second = client.begin(WATCH), client.begin(WATCH)
        widen(client, 0, 2**30)
        for stream in (first, second):
            client.read_message(stream, LIST)


def test_a_request_of_350_kb_needs_no_further_window(fast: Served) -> None:
    with fast.raw({4: 2**20}) as client:
        widen(client, 0, 2**20)
        client.ping()
        granted = 65_535 + sum(one.number for one in client.others if one.kind == WINDOW)
        greeting = next(one.payload for one in client.others if one.kind == SETTINGS)
        values = {greeting[at + 1]: greeting[at + 2 : at + 6] for at in range(0, len(greeting), 6)}
        assert min(granted, int.from_bytes(values[4], "big")) >= 4 * 2**20
        assert client.call(ECHO, b"x" * 350_000).messages == [b"x" * 350_000]


@pytest.mark.parametrize("count", [1, 3])
def test_a_long_request_is_granted_what_it_needs(fast: Served, count: int) -> None:
    """The client keeps to what it was granted; grpcio would grant by further settings as well."""
    request = b"y" * 4_000_000
    with fast.raw({4: 2**26}) as client:
        widen(client, 0, 2**30)
        client.ping()
        for _ in range(count):
            stream = client.stream()
            client.send(client.headers(stream, request_headers(ECHO)))
            send_within_windows(client, stream, grpc_message(request))
            assert client.finish(stream).messages == [request]


def send_within_windows(client: RawClient, stream: int, body: bytes) -> None:
    sent = 0
    greeting = next(one.payload for one in client.others if one.kind == SETTINGS and one.payload)
    values = {greeting[at + 1]: greeting[at + 2 : at + 6] for at in range(0, len(greeting), 6)}
    initial = int.from_bytes(values.get(4, u32(65_535)), "big")

    def room() -> int:
        before = sum(len(one) for one in client.bodies)
        connection = 65_535 + granted(client, 0) - before - sent
        return min(initial + granted(client, stream) - sent, connection, 16_384)

    while sent < len(body):
        client.read_until(lambda: room() > 0)
        piece = body[sent : sent + room()]
        sent += len(piece)
        client.send(pack(DATA, END_STREAM * (sent == len(body)), stream, piece))
    client.bodies.append(body)


def granted(client: RawClient, stream: int) -> int:
    return sum(one.number for one in client.others if one.kind == WINDOW and one.stream == stream)


def test_data_for_no_stream_is_granted_again(fast: Served) -> None:
    with fast.raw() as client:
        stream = client.stream()
        client.send(client.headers(stream, request_headers("/no/method")))
        client.finish(stream)
        client.ping()
        before = granted(client, 0)
        client.send(*[pack(DATA, 0, stream, bytes(16_000))] * 600)
        client.ping()
        assert granted(client, 0) - before >= 4 * 2**20


def test_a_peer_that_stops_reading_is_left(impatient: Callable[..., None], fast: Served) -> None:
    fast.watched.publish(LIST)
    with fast.raw(WIDE) as client, fast.raw() as other:
        impatient(client, other)
        widen(client, 0, 2**30)
        client.begin(WATCH)
        eventually(lambda: fast.watched.opened_streams == 1)
        eventually(lambda: fast.watched.open_streams == 0)
        other.begin(WATCH)
        eventually(lambda: fast.watched.open_streams == 1)
        assert other.call(ECHO, b"others stay").messages == [b"others stay"]


@pytest.mark.parametrize(
    "begun",
    [b"PRI * HT", b"", pack(PING, 0, 0, bytes(8))[:12], None],
    ids=["preface", "nothing", "frame", "request"],
)
def test_a_peer_that_does_not_go_on_is_left(
    impatient: Callable[..., None], fast: Served, begun: bytes | None
) -> None:
    impatient()
    with fast.raw(greet=begun not in (b"PRI * HT", b"")) as client:
        if begun is None:
            client.send(client.headers(1, request_headers(ECHO)), pack(DATA, 0, 1, bytes(3)))
        else:
            client.send(begun)
        client.read_until(lambda: client.closed)


def test_a_silent_peer_with_a_stream_stays(impatient: Callable[..., None], fast: Served) -> None:
    fast.watched.publish(b"first")
    with fast.raw() as client, fast.raw() as later:
        impatient(client, later)
        stream = client.begin(WATCH)
        later.send(pack(PING, 0, 0, bytes(8))[:12])
        later.read_until(lambda: later.closed)  # so time enough has passed for the other as well
        fast.watched.publish(b"second")
        client.read_message(stream, b"second")


def test_a_peer_that_reads_no_answers_is_not_read_from(fast: Served) -> None:
    """Answers of 100 MB would pile up otherwise: the client is made to wait instead."""
    with fast.raw(WIDE) as client:
        widen(client, 0, 2**31 - 1 - 65_535)
        client.ping()
        client.socket.settimeout(0.5)
        calls = (client.begin(ECHO, b"x" * 10_000) for _ in range(10_000))
        with pytest.raises(TimeoutError):
            deque(calls, maxlen=0)
        client.socket.settimeout(10)
        for stream in range(1, 100, 2):
            assert client.finish(stream).messages == [b"x" * 10_000]


def test_an_update_from_any_thread_reaches_an_idle_connection(served: Served) -> None:
    served.watched.publish(b"0")
    with served.raw() as client:
        stream = client.begin(WATCH)
        client.read_until(lambda: client.answers[stream].body)
        for number in range(1, 40):
            text = b"%d" % number
            threading.Thread(target=served.watched.publish, args=(text,)).start()
            client.read_message(stream, text)


def test_updates_and_calls_at_the_same_time(served: Served) -> None:
    """Threads publish while calls are made: nothing is lost, nothing is mixed up."""
    served.watched.publish(b"begin")
    with served.raw(WIDE) as client:
        widen(client, 0, 2**30)
        watch = client.begin(WATCH)
        threads = [
            threading.Thread(target=_publish, args=(served, bytes((letter,)) * 3_000))
            for letter in b"abc"
        ]
        for thread in threads:
            thread.start()
        for number in range(300):
            text = b"%d" % number
            assert client.call(ECHO, text).messages == [text]
        for thread in threads:
            thread.join()
        served.watched.publish(b"the end")
        client.read_message(watch, b"the end")
    assert all(len(set(one)) == 1 for one in client.answers[watch].messages[1:-1])


def _publish(served: Served, base: bytes) -> None:
    for number in range(200):
        served.watched.publish(base[: 2_000 + number])


def test_a_socket_that_takes_little_at_a_time(fast: Served) -> None:
    """Frames that the socket cuts anywhere go on where they were cut."""
    fast.watched.publish(LIST)
    with fast.raw(WIDE) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        widen(client, 0, 2**30)
        watch = client.begin(WATCH)
        for number in range(20):
            text = b"%d" % number
            assert client.call(ECHO, text).messages == [text]
        client.read_message(watch, LIST)
