"""The lean gRPC client against servers of grpcio: answers, errors, large messages, many at once."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hpack import Encoder

from benchmarks import http2
from benchmarks.calls import EchoClient, client
from benchmarks.client import CallError, Connection, ConnectionLost, Method
from benchmarks.loop import kept_busy
from benchmarks.servers import RENEW, Echo, EmptyHandler, Handlers, serving
from gpuplugin.kubelet.publication import Publication
from gpuplugin.rpc.grpcio_engine import GrpcioEngine
from gpuplugin.rpc.services import RpcCode, RpcError, Service
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

REPEAT = Method.of("/t.Test/Repeat")
LENGTH = Method.of("/t.Test/Length")
MANY = Method.of("/t.Test/Many")
FAIL = Method.of("/t.Test/Fail")
WATCH = Method.of("/t.Test/Watch")


class Served:
    """What the server under test was asked, and what it publishes."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.published = Publication()
        self.gate = threading.Event()
        self.gate.set()

    def repeat(self, request: bytes) -> bytes:
        self.asked["Repeat"] += 1
        self.gate.wait(20)
        return request

    def length(self, request: bytes) -> bytes:
        return str(len(request)).encode()

    def many(self, request: bytes) -> bytes:
        return bytes(int(request))

    def fail(self, request: bytes) -> bytes:
        raise RpcError(RpcCode.INVALID_ARGUMENT, request.decode())


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="gp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
def path(folder: Path, served: Served) -> Iterator[Path]:
    unary = {
        "Repeat": served.repeat,
        "Length": served.length,
        "Many": served.many,
        "Fail": served.fail,
    }
    service = Service("t.Test", unary, {"Watch": served.published.subscribe})
    server = GrpcioEngine().serve(folder / "s.sock", [service])
    yield folder / "s.sock"
    served.gate.set()
    server.stop(0)


@pytest.fixture
def connection(path: Path) -> Iterator[Connection]:
    with Connection(path, timeout_s=20) as made:
        yield made


def test_answers_that_repeat_and_answers_that_differ(
    connection: Connection, served: Served
) -> None:
    requests = [b"a", b"a", b"a", b"b", b"a", b"", b"", b"longer than before", b"a", b"a"] * 5
    assert [connection.call(REPEAT, request) for request in requests] == requests
    assert served.asked["Repeat"] == len(requests)


def test_errors_have_code_and_text_and_harm_no_other_call(connection: Connection) -> None:
    for text in ("no such device", "no such device", "GPU 5 + 3 %"):
        assert connection.call(REPEAT, b"fine") == b"fine"
        with pytest.raises(CallError) as caught:
            connection.call(FAIL, text.encode())
        assert (caught.value.code, caught.value.text) == (3, text)
    with pytest.raises(CallError) as caught:
        connection.call(Method.of("/t.Test/Nothing"), b"")
    assert caught.value.code == 12
    assert connection.call(REPEAT, b"fine") == b"fine"


@pytest.mark.parametrize("size", [1, 16_384, 65_531, 65_536, 1_000_000, 9_000_000])
def test_large_messages_both_ways(connection: Connection, size: int) -> None:
    """Beyond a frame, the first window of a stream and the one of the connection."""
    assert connection.call(LENGTH, bytes(size)) == str(size).encode()
    assert connection.call(LENGTH, bytes(size)) == str(size).encode()
    assert connection.call(MANY, str(size).encode()) == bytes(size)


def test_windows_are_kept_open_over_many_calls(connection: Connection) -> None:
    """More bytes in all than a window has, both ways."""
    request = bytes(40_000)
    for _ in range(50):
        assert connection.call(REPEAT, request) == request


def test_calls_in_flight_at_once_end_in_any_order(path: Path, served: Served) -> None:
    served.gate.clear()
    with Connection(path, timeout_s=20) as connection:
        sent = {connection.begin(REPEAT, bytes([n]) * n): bytes([n]) * n for n in range(1, 13)}
        eventually(lambda: served.asked["Repeat"] == len(sent))
        served.gate.set()
        found: dict[int, bytes] = {}
        while len(found) < len(sent):
            for done in connection.receive():
                assert done.error is None
                found[done.stream_id] = done.answer
    assert found == sent


@pytest.mark.parametrize(
    ("clients", "streams", "calls"), [(1, 1, 7), (1, 16, 5), (1, 16, 100), (5, 3, 101)]
)
def test_a_loop_makes_every_call_it_was_asked_for(
    path: Path, served: Served, clients: int, streams: int, calls: int
) -> None:
    connections = [Connection(path) for _ in range(clients)]
    busy = kept_busy(connections, REPEAT, b"x", streams, calls)
    for connection in connections:
        connection.close()
    assert len(busy.latencies_us) == served.asked["Repeat"] == calls
    assert all(one > 0 for one in busy.latencies_us)
    assert busy.calls_per_s == pytest.approx(calls / busy.took_s)


def test_a_loop_ends_with_the_first_error(connection: Connection) -> None:
    with pytest.raises(CallError, match="status 3"):
        kept_busy([connection], FAIL, b"no", 2, 10)


def test_a_stream_is_followed_and_cancelled(connection: Connection, served: Served) -> None:
    served.published.publish(b"first")
    stream = connection.follow(WATCH)
    assert connection.message(stream) == b"first"
    served.published.publish(bytes(300_000))
    assert connection.message(stream) == bytes(300_000)
    assert connection.call(REPEAT, b"between") == b"between"
    connection.cancel(stream)
    eventually(lambda: served.published.open_streams == 0)


def test_the_end_of_a_stream_is_told(connection: Connection, served: Served) -> None:
    served.published.publish(b"only")
    stream = connection.follow(WATCH)
    assert connection.message(stream) == b"only"
    served.published.end_streams()
    with pytest.raises(CallError) as caught:
        connection.message(stream)
    assert caught.value.code == 0


def test_pings_of_the_server_are_answered(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "p.sock"))
        listener.listen()
        with Connection(folder / "p.sock") as connection, listener.accept()[0] as peer:
            peer.settimeout(20)
            ping = http2.frame(http2.Kind.PING, 0, 0, b"8 bytes!")
            peer.sendall(ping + http2.frame(http2.Kind.GOAWAY, 0, 0, bytes(8)))
            with pytest.raises(ConnectionLost, match="goodbye"):
                connection.call(REPEAT, b"")
            pong = http2.frame(http2.Kind.PING, http2.Flag.ACK, 0, b"8 bytes!")
            assert peer.recv(4096).endswith(pong)


def test_the_same_bytes_mean_something_else_once_the_table_has_changed(folder: Path) -> None:
    encoder = Encoder()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "p.sock"))
        listener.listen()
        with Connection(folder / "p.sock") as connection, listener.accept()[0] as peer:
            found, trailers = [], []
            for status in ("0", "0", "0", "3", "3", "0", "0"):
                stream = connection.begin(REPEAT, b"")
                trailers.append(encoder.encode([("grpc-status", status)]))
                peer.sendall(
                    http2.frame(http2.Kind.HEADERS, http2.Flag.END_HEADERS, stream, b"\x88")
                    + http2.frame(http2.Kind.DATA, 0, stream, http2.message(b"answer"))
                    + http2.frame(
                        http2.Kind.HEADERS,
                        http2.Flag.END_HEADERS | http2.Flag.END_STREAM,
                        stream,
                        trailers[-1],
                    )
                )
                (done,) = connection.receive()
                found.append(done.error.code if done.error else 0)
    assert trailers[1] == trailers[4], "or nothing was tested"
    assert found == [0, 0, 0, 3, 3, 0, 0]


def test_a_server_that_goes_away(path: Path, folder: Path) -> None:
    with pytest.raises(ConnectionLost, match="nobody answers"):
        Connection(folder / "none.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "deaf.sock"))
        listener.listen()
        with (
            Connection(folder / "deaf.sock", timeout_s=0.05) as connection,
            pytest.raises(ConnectionLost, match=r"did not answer within 0\.05 s"),
        ):
            connection.call(REPEAT, b"")
        listener.accept()[0].close()
        with Connection(folder / "deaf.sock") as connection, listener.accept()[0] as peer:
            peer.sendall(http2.frame(http2.Kind.GOAWAY, 0, 0, bytes(8) + b"enough"))
            with pytest.raises(ConnectionLost, match="said goodbye: enough"):
                connection.call(REPEAT, b"")


@pytest.mark.parametrize("name", ["raw", "grpcio"])
def test_a_server_process_with_the_plugins_handlers(folder: Path, name: str) -> None:
    from benchmarks.devices import allocate_request, prefer_request, uuid_of
    from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb

    path = folder / "p.sock"
    with serving(path, Handlers("grpcio", 2, 10, "pcie")) as pid:
        assert pid > 0
        caller = client("raw" if name == "raw" else "grpcio", path)
        device = f"{uuid_of(1)}::7"
        answer = caller.caller("Allocate")(allocate_request([device]))
        envs = dict(pb.AllocateResponse.FromString(answer).container_responses[0].envs)
        assert envs == {"NVIDIA_VISIBLE_DEVICES": uuid_of(1)}
        prefer = caller.caller("GetPreferredAllocation")
        before = prefer(prefer_request([device], 1))
        assert caller.caller(RENEW)(b"") == b""
        assert prefer(prefer_request([device], 1)) == before
        caller.close()
    assert not path.exists()


def test_the_floors(folder: Path) -> None:
    with serving(folder / "e.sock", EmptyHandler("grpcio")):
        caller = client("raw", folder / "e.sock")
        assert caller.caller("Allocate")(b"anything") == b""
        caller.close()
        with Connection(folder / "e.sock") as connection:
            stream = connection.follow(Method.of("/v1beta1.DevicePlugin/ListAndWatch"))
            assert connection.message(stream) == b""
    with serving(folder / "echo.sock", Echo(100, 70_000)):
        echo = EchoClient(folder / "echo.sock", 100, 70_000)
        for _ in range(3):
            echo.call()
        echo.close()
