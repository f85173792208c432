"""The life of a server: its socket, how it stops, and how many connections it takes."""

from __future__ import annotations

import gc
import os
import resource
import select
import socket
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from gpuplugin.rpc import Service, SocketError
from gpuplugin.rpc import fast as engine_fast
from gpuplugin.rpc.fast import MAX_CONNECTIONS, FastEngine
from gpuplugin.rpc.h2.calls import ServerCalls, Stream
from gpuplugin.rpc.h2.connection import ServerConnection
from gpuplugin.rpc.services import MAX_SOCKET_PATH_BYTES
from tests.component.waiting import eventually
from tests.conformance.engines.conftest import ECHO, ENGINES, WATCH, serving
from tests.conformance.engines.rawh2 import (
    DATA,
    END_STREAM,
    GOAWAY,
    RawClient,
    grpc_message,
    pack,
    request_headers,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conformance.engines.conftest import Served

HELLO = grpc_message(b"hello")


def test_a_server_that_was_stopped_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with serving(FastEngine()) as served, served.raw() as client, served.raw() as other:
        assert client.call(ECHO, b"one").messages == [b"one"]
        assert other.call(ECHO, b"one").messages == [b"one"]
        assert len(set(threading.enumerate()) - before) == 3
        served.server.stop(0)
        eventually(lambda: set(threading.enumerate()) <= before)


def test_a_connection_on_which_something_fails_is_closed(
    fast: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a mistake of ours")

    with fast.raw() as client, fast.raw() as other:
        assert client.call(ECHO, b"one").messages == [b"one"]
        assert other.call(ECHO, b"one").messages == [b"one"]
        with monkeypatch.context() as patched:
            patched.setattr(ServerConnection, "receive", fail)
            client.begin(ECHO, b"two")
            client.read_until(lambda: client.closed)
        assert other.call(ECHO, b"three").messages == [b"three"]
    assert fast.requests == [b"one", b"one", b"three"]
    assert "its client will reconnect" in caplog.text


@pytest.mark.parametrize("engine", ENGINES)
def test_a_path_that_no_socket_can_have_is_told_with_its_length(
    engine: str, tmp_path: Path
) -> None:
    path = tmp_path / ("s" * (MAX_SOCKET_PATH_BYTES + 1 - len(f"{tmp_path}/")))
    with pytest.raises(SocketError, match="is 108 bytes long, the limit is 107"):
        ENGINES[engine]().serve(path, [])


def test_no_thread_is_left_of_a_server_that_cannot_have_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = threading.Thread.start, list[threading.Thread]()

    def start_ten(thread: threading.Thread) -> None:
        if len(started) == 10:
            raise RuntimeError("can't start new thread")
        start(thread)
        started.append(thread)

    monkeypatch.setattr(threading.Thread, "start", start_ten)
    with pytest.raises(SocketError, match="can't start new thread"):
        ENGINES["grpcio"]().serve(tmp_path / "s.sock", [])
    assert len(started) == 10
    eventually(lambda: not any(thread.is_alive() for thread in started))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_socket_is_there_while_it_is_served(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    old = os.umask(0o027)
    try:
        server = ENGINES[engine]().serve(path, [])
    finally:
        os.umask(old)
    assert stat.S_ISSOCK(path.lstat().st_mode)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o750
    server.stop(0)
    assert not path.exists()
    server.stop(0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_socket_left_behind_is_replaced(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    server = ENGINES[engine]().serve(path, [])
    with RawClient(path) as client:
        client.ping()
    server.stop(0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("where", ["no-folder/s.sock", "x" * 200, "file"])
def test_a_socket_that_cannot_be_made(engine: str, where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a socket")
    with pytest.raises(SocketError):
        ENGINES[engine]().serve(tmp_path / where, [])
    assert (tmp_path / "file").read_text() == "not a socket"


def test_a_socket_of_somebody_else_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    server = FastEngine().serve(path, [])
    path.unlink()
    path.write_text("somebody else's")
    server.stop(0)
    assert path.read_text() == "somebody else's"


def test_stopping_says_goodbye(served: Served) -> None:
    with served.raw() as client:
        client.call(ECHO, b"")
        served.server.stop(0.2)
        assert client.goaway() == 0


def test_stopping_lets_streams_end(fast: Served) -> None:
    fast.watched.publish(b"list")
    with fast.raw() as client:
        stream = client.begin(WATCH)
        client.read_until(lambda: client.answers[stream].body)
        stopping = threading.Thread(target=fast.server.stop, args=(20,))
        stopping.start()
        client.read_until(lambda: any(one.kind == GOAWAY for one in client.others))
        fast.watched.publish(b"one more")
        client.read_message(stream, b"one more")
        late = client.stream()
        client.send(client.headers(late, request_headers(ECHO)))
        assert client.finish(late).reset == 7
        fast.watched.end_streams()
        assert client.finish(stream)["grpc-status"] == "0"
        assert client.goaway() == 0
        stopping.join(10)
        assert not stopping.is_alive()


def test_a_call_that_runs_is_answered_while_the_server_stops(fast: Served) -> None:
    with fast.raw() as client:
        stream = client.stream()
        client.send(client.headers(stream, request_headers(ECHO)), pack(DATA, 0, stream, HELLO[:4]))
        client.ping()
        stopping = threading.Thread(target=fast.server.stop, args=(20,))
        stopping.start()
        client.read_until(lambda: any(one.kind == GOAWAY for one in client.others))
        client.send(pack(DATA, END_STREAM, stream, HELLO[4:]))
        assert client.finish(stream).messages == [b"hello"]
        stopping.join(10)
        assert not stopping.is_alive()


@pytest.mark.parametrize("engine", ENGINES)
def test_streams_that_do_not_end_are_broken_off_after_the_grace(engine: str) -> None:
    with serving(ENGINES[engine]()) as served, served.raw() as client:
        served.watched.publish(b"list")
        stream = client.begin(WATCH)
        client.read_until(lambda: client.answers[stream].body)
        served.server.stop(0.1)
        client.read_until(lambda: client.closed)
        eventually(lambda: served.watched.open_streams == 0)


def test_stopping_does_not_wait_for_a_handler_that_hangs(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    release = threading.Event()
    inside = threading.Event()

    def hang(_request: bytes) -> bytes:
        inside.set()
        release.wait(30)
        return b""

    server = FastEngine().serve(path, [Service("test.Slow", {"Hang": hang}, {})])
    with RawClient(path) as client:
        client.begin("/test.Slow/Hang")
        assert inside.wait(10)
        stopping = threading.Thread(target=server.stop, args=(0.1,))
        stopping.start()
        stopping.join(20)
        assert not stopping.is_alive()
    release.set()


def test_the_keeper_rests_after_it_was_woken(fast: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[None] = []
    poll = select.poll

    def counted() -> select.poll:
        turns.append(None)
        return poll()

    assert isinstance(fast.server, engine_fast.FastServer)
    with fast.raw() as client:
        monkeypatch.setattr(select, "poll", counted)
        fast.server.poke()
        eventually(lambda: bool(turns))
        for _ in range(300):
            client.call(ECHO, b"beside")
        assert len(turns) < 30


HANGS = """
import sys, threading
from pathlib import Path
from gpuplugin.rpc import Service
from gpuplugin.rpc.fast import FastEngine
from tests.conformance.engines.rawh2 import RawClient

inside = threading.Event()

def hang(request):
    inside.set()
    threading.Event().wait()

path = Path(sys.argv[1])
server = FastEngine().serve(path, [Service("test.Slow", {"Hang": hang}, {})])
client = RawClient(path)
client.begin("/test.Slow/Hang")
assert inside.wait(10)
"""


def test_a_process_ends_in_spite_of_a_handler_that_hangs(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGS, str(tmp_path / "s.sock")]
    assert subprocess.run(command, timeout=20, check=False).returncode == 0


def test_nothing_is_left_after_stopping() -> None:
    before = set(threading.enumerate())
    descriptors = _descriptors()
    for _ in range(20):
        with serving(FastEngine()) as served:
            clients = [served.raw() for _ in range(5)]
            for client in clients:
                client.begin(WATCH)
                client.call(ECHO, b"x")
            served.watched.end_streams()
            served.server.stop(5)
            for client in clients:
                client.socket.close()
    eventually(lambda: not (set(threading.enumerate()) - before) or None)
    assert _descriptors() < descriptors + 10


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count, not paths


def test_connections_come_and_go(fast: Served) -> None:
    for number in range(100):
        with fast.raw() as client:
            assert client.call(ECHO, b"%d" % number)["grpc-status"] == "0"


def test_the_connection_that_was_idle_for_longest_makes_room(fast: Served) -> None:
    clients = [fast.raw() for _ in range(MAX_CONNECTIONS)]
    for client in [*clients[1:], clients[0]]:
        client.call(ECHO, b"x")
    with fast.raw() as one_more:
        assert one_more.call(ECHO, b"x")["grpc-status"] == "0"
        clients[1].read_until(lambda: clients[1].closed)
        assert clients[0].call(ECHO, b"x")["grpc-status"] == "0"
    for client in clients:
        client.socket.close()


def test_the_newest_gets_in_if_none_is_idle_and_the_oldest_stays(fast: Served) -> None:
    clients = [fast.raw() for _ in range(MAX_CONNECTIONS)]
    for client in clients:
        client.begin(WATCH)
    eventually(lambda: fast.watched.open_streams == MAX_CONNECTIONS)
    for _ in range(3 * MAX_CONNECTIONS):
        clients.append(fast.raw())
        assert clients[-1].call(ECHO, b"x")["grpc-status"] == "0"
        clients[-1].begin(WATCH)
    assert clients[0].call(ECHO, b"x")["grpc-status"] == "0"
    assert fast.watched.open_streams <= MAX_CONNECTIONS
    for client in clients:
        client.socket.close()
    eventually(lambda: fast.watched.open_streams == 0)
    with fast.raw() as client:
        assert client.call(ECHO, b"x")["grpc-status"] == "0"


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """No file can be opened beyond what is open now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_connections_are_accepted_again_after_descriptors_ran_out(
    fast: Served, few_descriptors: None, caplog: pytest.LogCaptureFixture
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    waiting = socket.socket(socket.AF_UNIX)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    waiting.connect(str(fast.path))
    eventually(lambda: "cannot accept a connection" in caplog.text)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with fast.raw() as client:
        assert client.call(ECHO, b"x")["grpc-status"] == "0"
    waiting.close()


def test_a_client_that_is_gone_before_its_answer(fast: Served) -> None:
    for _ in range(20):
        client = fast.raw()
        client.begin(ECHO, b"x" * 100_000)
        client.begin(WATCH)
        client.socket.close()
    eventually(lambda: fast.watched.open_streams == 0)
    with fast.raw() as client:
        assert client.call(ECHO, b"x")["grpc-status"] == "0"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads take turns all the time, and the keeper never rests."""
    interval_s = sys.getswitchinterval()
    monkeypatch.setattr(engine_fast, "CHECK_S", 0.0)
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval_s)


def test_the_keeper_looks_while_streams_come_and_go(hasty: None, fast: Served) -> None:
    with fast.raw() as client:
        for _ in range(60):
            streams = [client.stream() for _ in range(50)]
            headers = request_headers(ECHO, grpc_timeout="1H")
            client.send(*(client.headers(one, headers) for one in streams))
            client.send(*(pack(DATA, END_STREAM, one, HELLO) for one in streams))
            for stream in streams:
                assert client.finish(stream)["grpc-status"] == "0"
    with fast.raw() as client:
        assert client.call(ECHO, b"x")["grpc-status"] == "0"


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Nothing is freed by the garbage collector, which comes when it likes."""
    gc.disable()
    yield
    gc.enable()


def test_servers_leave_no_descriptors_behind(uncollected: None) -> None:
    def serve_once() -> None:
        with serving(FastEngine()) as served, served.raw() as client:
            client.begin(WATCH)
            assert client.call(ECHO, b"x")["grpc-status"] == "0"

    before = _descriptors()
    for _ in range(10):
        serve_once()
    eventually(lambda: _descriptors() <= before)


def test_an_engine_fault_ends_its_connection_alone(
    fast: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever publishes is in the thread where it happens, and must not be hit."""
    failing, pull = threading.Event(), ServerCalls.pull

    def pull_or_fail(calls: ServerCalls, stream: Stream) -> None:
        assert not failing.is_set(), "a fault"
        pull(calls, stream)

    monkeypatch.setattr(ServerCalls, "pull", pull_or_fail)
    fast.watched.publish(b"list")
    with fast.raw() as client, fast.raw() as other:
        stream = client.begin(WATCH)
        client.read_message(stream, b"list")
        failing.set()
        fast.watched.publish(b"more")
        client.read_until(lambda: client.closed)
        assert other.call(ECHO, b"x")["grpc-status"] == "0"
    assert "a connection failed" in caplog.text
    eventually(lambda: fast.watched.open_streams == 0)
