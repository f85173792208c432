"""The engines under test, each serving the same small service on a socket of its own."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from gpuplugin.rpc import RpcCode, RpcError, Service
from gpuplugin.rpc.fast import FastEngine
from gpuplugin.rpc.grpcio_engine import GrpcioEngine
from gpuplugin.rpc.publication import Publication
from tests.conformance.engines.rawh2 import RawClient

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gpuplugin.rpc import Engine, Server

settings.register_profile(
    "engines", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)

ENGINES: Mapping[str, type[GrpcioEngine | FastEngine]] = {
    "fast": FastEngine,
    "grpcio": GrpcioEngine,
}
SERVICE = "test.Conformance"
ECHO, FAIL, BOOM, REPEAT, WATCH = (
    f"/{SERVICE}/{name}" for name in ("Echo", "Fail", "Boom", "Repeat", "Watch")
)


@dataclass
class Served:
    """A server that runs; `watched` is what Watch follows, `requests` what Echo was asked."""

    path: Path
    server: Server
    watched: Publication
    requests: list[bytes] = field(default_factory=list)

    def raw(self, settings: Mapping[int, int] | None = None, *, greet: bool = True) -> RawClient:
        return RawClient(self.path, settings=settings, greet=greet)


def _fail(request: bytes) -> bytes:
    code, _, text = request.partition(b" ")
    raise RpcError(RpcCode(int(code)), text.decode())


def _boom(request: bytes) -> bytes:
    raise ValueError(request.decode())


def _repeat(request: bytes) -> bytes:
    return b"x" * int(request)


def echo_service(watched: Publication, requests: list[bytes]) -> Service:
    def echo(request: bytes) -> bytes:
        requests.append(request)
        return request

    unary = {"Echo": echo, "Fail": _fail, "Boom": _boom, "Repeat": _repeat}
    return Service(SERVICE, unary, {"Watch": watched.subscribe})


@contextmanager
def serving(engine: Engine, more: Sequence[Service] = ()) -> Iterator[Served]:
    folder = Path(tempfile.mkdtemp(prefix="rpc"))
    path = folder / "s.sock"
    watched = Publication()
    requests: list[bytes] = []
    server = engine.serve(path, [echo_service(watched, requests), *more])
    try:
        yield Served(path, server, watched, requests)
    finally:
        watched.end_streams()
        server.stop(0)
        shutil.rmtree(folder)


@pytest.fixture(params=ENGINES)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """Each engine in turn."""
    with serving(ENGINES[request.param]()) as running:
        yield running


@pytest.fixture
def fast() -> Iterator[Served]:
    """The fast engine, for rules that grpcio keeps otherwise or not at all."""
    with serving(FastEngine()) as running:
        yield running
