"""Each engine with each client: calls, errors, deadlines, large messages, streams."""

from __future__ import annotations

import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from gpuplugin.rpc import RpcCode, RpcError, Service
from gpuplugin.rpc.client import CallFailed, Connection, Method
from gpuplugin.rpc.fast import FastEngine
from tests.component.waiting import DEADLINE_S, eventually
from tests.conformance.engines.clients import CLIENTS, GrpcioClient, Refused
from tests.conformance.engines.conftest import (
    BOOM,
    ECHO,
    ENGINES,
    FAIL,
    REPEAT,
    WATCH,
    serving,
)
from tests.conformance.engines.rawh2 import grpc_message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conformance.engines.clients import Client
    from tests.conformance.engines.conftest import Served


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, served: Served) -> Iterator[Client]:
    if request.param == "grpclib":
        pytest.importorskip("grpclib", reason="the client of this test is not installed")
    made = CLIENTS[request.param](served.path)
    yield made
    made.close()


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 350_000, 4_000_000])
def test_a_call_is_answered(client: Client, size: int) -> None:
    assert client.call(ECHO, b"x" * size) == b"x" * size


def test_calls_one_after_the_other_on_one_connection(client: Client) -> None:
    for number in range(50):
        request = b"%d" % number
        assert client.call(ECHO, request) == request


def test_an_error_of_a_handler_has_its_code_and_its_text(client: Client) -> None:
    with pytest.raises(Refused) as caught:
        client.call(FAIL, b"3 GPU-1::7 is no device")
    assert (caught.value.code, caught.value.text) == (3, "GPU-1::7 is no device")


def test_a_handler_that_raises_something_else_is_unknown(client: Client) -> None:
    with pytest.raises(Refused) as caught:
        client.call(BOOM, b"division by zero")
    expected = (2, "Exception calling application: division by zero")
    assert (caught.value.code, caught.value.text) == expected


def test_an_unknown_method_is_unimplemented(client: Client) -> None:
    with pytest.raises(Refused) as caught:
        client.call("/test.Conformance/Nothing", b"")
    assert caught.value.code == 12


def test_a_call_within_its_deadline(client: Client) -> None:
    assert client.call(ECHO, b"in time", timeout_s=20.0) == b"in time"


def test_a_stream_gets_the_newest_message(client: Client, served: Served) -> None:
    served.watched.publish(b"first")
    with client.watch(WATCH) as read:
        assert read() == b"first"
        served.watched.publish(b"second" * 100_000)
        assert read() == b"second" * 100_000
    eventually(lambda: served.watched.open_streams == 0)


def test_a_stream_ends_when_its_subscription_is_closed(client: Client, served: Served) -> None:
    served.watched.publish(b"first")
    with client.watch(WATCH) as read:
        assert read() == b"first"
        served.watched.end_streams()
        assert read() is None


def test_calls_go_on_beside_a_stream(client: Client, served: Served) -> None:
    served.watched.publish(b"x" * 1_000_000)
    with client.watch(WATCH) as read:
        assert client.call(ECHO, b"beside") == b"beside"
        assert read() == b"x" * 1_000_000
        assert client.call(REPEAT, b"70000") == b"x" * 70_000


def test_many_calls_at_a_time_on_one_connection(served: Served) -> None:
    client = GrpcioClient(served.path)
    try:
        with ThreadPoolExecutor(16) as threads:
            requests = [b"%d" % number for number in range(200)]
            answers = list(threads.map(lambda one: client.call(ECHO, one), requests))
    finally:
        client.close()
    assert answers == requests


@pytest.mark.parametrize("engine", ENGINES)
def test_a_handler_that_waits_holds_up_no_other_call_of_its_connection(engine: str) -> None:
    """As a kubelet has one connection for all claims, of which one may wait for another one."""
    given, path = threading.Event(), "/test.Waiting/Work"

    def work(request: bytes) -> bytes:
        if request == b"give":
            given.set()
        elif request != b"fail":
            assert given.wait(DEADLINE_S)
        else:
            raise RpcError(RpcCode.NOT_FOUND, "no such thing")
        return request

    waiting = Service("test.Waiting", {"Work": work}, {}, frozenset({"Work"}))
    with serving(ENGINES[engine](), [waiting]) as served, ThreadPoolExecutor(3) as threads:
        client = GrpcioClient(served.path)
        try:
            assert client.call(ECHO, b"connected") == b"connected"
            held_up = [threads.submit(client.call, path, b"take") for _ in range(2)]
            assert client.call(ECHO, b"beside") == b"beside"
            with pytest.raises(Refused, match="no such thing"):
                client.call(path, b"fail")
            assert client.call(path, b"give") == b"give"
            assert [one.result(DEADLINE_S) for one in held_up] == [b"take"] * 2
        finally:
            client.close()


def test_only_so_many_handlers_wait_at_a_time_and_each_call_has_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered, given = threading.Semaphore(0), threading.Event()
    at_most, calls = 3, [b"%d" % number for number in range(8)]
    monkeypatch.setattr("gpuplugin.rpc.fast.MAX_WAITING_CALLS", at_most)

    def work(request: bytes) -> bytes:
        entered.release()
        assert given.wait(DEADLINE_S)
        return request

    waiting = Service("test.Waiting", {"Work": work}, {}, frozenset({"Work"}))
    with (
        serving(FastEngine(), [waiting]) as served,
        Connection(served.path, DEADLINE_S) as connection,
    ):
        assert connection.call(Method.of(ECHO), b"connected") == b"connected"
        others = set(threading.enumerate())
        for _ in range(2):
            given.clear()
            method = Method.of("/test.Waiting/Work")
            started = [connection.start(method, one) for one in calls]
            assert connection.call(Method.of(ECHO), b"behind them") == b"behind them"
            assert len(set(threading.enumerate()) - others) == at_most
            for _ in range(at_most):
                assert entered.acquire(timeout=DEADLINE_S)
            assert not entered.acquire(blocking=False)
            given.set()
            for _ in calls[at_most:]:
                assert entered.acquire(timeout=DEADLINE_S)
            while not all(call.ended for call in started):
                connection.ended()
            assert [call.result() for call in started] == calls
            eventually(lambda: set(threading.enumerate()) <= others)


def test_a_thread_that_cannot_be_had_fails_its_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, given = threading.Semaphore(0), threading.Event()
    start, missing = threading.Thread.start, [3]
    monkeypatch.setattr("gpuplugin.rpc.fast.MAX_WAITING_CALLS", 1)

    def start_or_fail(thread: threading.Thread) -> None:
        if thread.name == "rpc-waiting" and missing[0]:
            missing[0] -= 1
            raise RuntimeError("can't start new thread")
        start(thread)

    def work(request: bytes) -> bytes:
        entered.release()
        assert given.wait(DEADLINE_S)
        return request

    monkeypatch.setattr(threading.Thread, "start", start_or_fail)
    waiting = Service("test.Waiting", {"Work": work}, {}, frozenset({"Work"}))
    method = Method.of("/test.Waiting/Work")
    with (
        serving(FastEngine(), [waiting]) as served,
        Connection(served.path, DEADLINE_S) as connection,
    ):
        for _ in range(3):
            with pytest.raises(CallFailed, match="no thread for a call") as caught:
                connection.call(method, b"failed")
            assert caught.value.code == RpcCode.RESOURCE_EXHAUSTED
        started = [connection.start(method, b"%d" % number) for number in range(3)]
        assert connection.call(Method.of(ECHO), b"beside") == b"beside"
        assert entered.acquire(timeout=DEADLINE_S)
        assert not entered.acquire(blocking=False), "one at a time, as before"
        given.set()
        while not all(call.ended for call in started):
            connection.ended()
        assert [call.result() for call in started] == [b"0", b"1", b"2"]


def test_of_a_handler_that_waits_nobody_is_told_after_the_client_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    entered, released, left = threading.Event(), threading.Event(), threading.Event()

    def work(request: bytes) -> bytes:
        entered.set()
        assert released.wait(DEADLINE_S)
        left.set()
        return request

    waiting = Service("test.Waiting", {"Work": work}, {}, frozenset({"Work"}))
    with serving(FastEngine(), [waiting]) as served:
        with Connection(served.path, DEADLINE_S) as connection:
            connection.start(Method.of("/test.Waiting/Work"), b"take", streaming=False)
            assert entered.wait(DEADLINE_S)
        released.set()
        assert left.wait(DEADLINE_S)
        with Connection(served.path, DEADLINE_S) as connection:
            assert connection.call(Method.of(ECHO), b"next") == b"next"
    assert not caplog.records


_NGHTTP2 = pytest.mark.skipif(
    shutil.which("h2load") is None, reason="h2load is not installed (Debian: nghttp2-client)"
)
_HEADERS = ("-H", "content-type: application/grpc", "-H", "te: trailers")


@_NGHTTP2
def test_h2load(served: Served, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(grpc_message(b"hello"))
    command = ("h2load", "-n", "400", "-c", "2", "-m", "8", "-d", str(body), *_HEADERS)
    target = (f"--base-uri=unix:{served.path}", f"http://localhost{ECHO}")
    text = subprocess.run(
        (*command, *target), capture_output=True, text=True, timeout=30, check=True
    ).stdout
    assert "400 succeeded, 0 failed, 0 errored" in text
    assert served.requests == [b"hello"] * 400
