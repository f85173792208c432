"""Calls of the benchmarks: loops that keep connections busy, servers in processes, floors."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.calls import caller, device_plugin_method, kept_busy
from benchmarks.client import TimedClient
from benchmarks.devices import allocate_request, prefer_request, uuid_of
from benchmarks.servers import RENEW, Echo, EmptyHandler, Handlers, serving
from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.rpc import RpcCode, RpcError, Service
from gpuplugin.rpc.client import CallFailed, Connection, ConnectionFailed, Method
from gpuplugin.rpc.grpcio_engine import GrpcioEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.calls import ClientName

REPEAT = Method.of("/t.Test/Repeat")
FAIL = Method.of("/t.Test/Fail")


def fail(request: bytes) -> bytes:
    raise RpcError(RpcCode.INVALID_ARGUMENT, request.decode())


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="gp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def requests() -> list[bytes]:
    """What the server under test was asked."""
    return []


@pytest.fixture
def path(folder: Path, requests: list[bytes]) -> Iterator[Path]:
    def repeat(request: bytes) -> bytes:
        requests.append(request)
        return request

    service = Service("t.Test", {"Repeat": repeat, "Fail": fail}, {})
    server = GrpcioEngine().serve(folder / "s.sock", [service])
    yield folder / "s.sock"
    server.stop(0)


@pytest.mark.parametrize(
    ("clients", "streams", "calls"), [(1, 1, 7), (1, 16, 5), (1, 16, 100), (5, 3, 101)]
)
def test_a_loop_makes_every_call_it_was_asked_for(
    path: Path, requests: list[bytes], clients: int, streams: int, calls: int
) -> None:
    connections = [Connection(path) for _ in range(clients)]
    busy = kept_busy(connections, REPEAT, b"x", streams, calls)
    for connection in connections:
        connection.close()
    assert len(busy.latencies_us) == len(requests) == calls
    assert all(one > 0 for one in busy.latencies_us)
    assert busy.calls_per_s == pytest.approx(calls / busy.took_s)


def test_a_loop_ends_with_the_first_error(path: Path) -> None:
    with (
        Connection(path, 20.0) as connection,
        pytest.raises(CallFailed, match="INVALID_ARGUMENT: no"),
    ):
        kept_busy([connection], FAIL, b"no", 2, 10)


@pytest.mark.parametrize("name", ["raw", "grpcio"])
def test_a_server_process_with_the_plugins_handlers(folder: Path, name: ClientName) -> None:
    path = folder / "p.sock"
    with serving(path, Handlers("grpcio", 2, 10, "pcie")) as pid, ExitStack() as stack:
        assert pid > 0
        allocate, prefer, renew = (
            stack.enter_context(caller(name, path, method))
            for method in ("Allocate", "GetPreferredAllocation", RENEW)
        )
        device = f"{uuid_of(1)}::7"
        response = pb.AllocateResponse.FromString(allocate(allocate_request([device])))
        envs = dict(response.container_responses[0].envs)
        assert envs == {"NVIDIA_VISIBLE_DEVICES": uuid_of(1)}
        before = prefer(prefer_request([device], 1))
        assert renew(b"") == b""
        assert prefer(prefer_request([device], 1)) == before
    assert not path.exists()


def test_the_floors(folder: Path) -> None:
    method = device_plugin_method("Allocate")
    with serving(folder / "e.sock", EmptyHandler("grpcio")):
        with caller("raw", folder / "e.sock", "Allocate") as call:
            assert call(b"anything") == b""
        with Connection(folder / "e.sock") as connection:
            stream = connection.start(device_plugin_method("ListAndWatch"), b"", streaming=True)
            assert connection.next_response(stream) == b""
    request_bytes = len(method.whole_call(1, b"request"))
    with serving(folder / "echo.sock", Echo(request_bytes, b"response")):
        for _ in range(2):
            with Connection(folder / "echo.sock", 20.0) as connection:
                for _ in range(3):
                    assert connection.call(method, b"request") == b"response"


def test_a_calls_time_is_that_until_its_answer_is_in(path: Path) -> None:
    with TimedClient(path, REPEAT, 20.0) as client:
        for size in (0, 1000, 100_000):  # the last one does not fit the windows at first
            assert client(b"x" * size) == b"x" * size
        assert client.own_share == 0.0
        took_us = [client.timed(b"x") for _ in range(50)]
        assert client.latencies_us == took_us
        assert all(0 < own < took for own, took in zip(client.own_us, took_us, strict=True))
        assert 0 < client.own_share < 0.5
    with TimedClient(path, FAIL, 20.0) as client, pytest.raises(CallFailed, match="no"):
        client.timed(b"no")


def test_a_server_that_does_not_listen(folder: Path) -> None:
    with pytest.raises(ConnectionFailed), caller("raw", folder / "none.sock", "Allocate"):
        pass
