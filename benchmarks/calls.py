"""Clients of a server, closed loops of calls, and subjects that are measured in turns."""

from __future__ import annotations

import gc
import selectors
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import grpc

from benchmarks.client import TimedClient
from gpuplugin.kubelet.deviceplugin import SERVICE_NAME
from gpuplugin.rpc.client import Method
from gpuplugin.rpc.services import grpc_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from random import Random

    from gpuplugin.rpc.client import ClientCall, Connection

ClientName: TypeAlias = Literal["raw", "grpcio"]


TIMEOUT_S = 30.0


def device_plugin_method(name: str) -> Method:
    return Method.of(f"/{SERVICE_NAME}/{name}")


class Caller(Protocol):
    """A method of a server; both raise `CallFailed` for an error status."""

    def __call__(self, request: bytes) -> bytes: ...
    def timed(self, request: bytes) -> float:
        """Microseconds of a call."""


@contextmanager
def caller(client: ClientName, path: Path, method: str) -> Iterator[Caller]:
    """A method of the server at a socket.

    `raw` costs the same with every server, and little; grpcio's client costs more than most
    servers do.

    Raises:
        ConnectionFailed: nothing listens there (`raw`).
    """
    if client == "raw":
        with TimedClient(path, device_plugin_method(method), TIMEOUT_S) as timed:
            yield timed
        return
    options = (("grpc.max_receive_message_length", -1),)
    with grpc.insecure_channel(grpc_target(path), options=options) as channel:
        yield _GrpcioCaller(channel.unary_unary(f"/{SERVICE_NAME}/{method}"))


class _GrpcioCaller:
    def __init__(self, call: grpc.UnaryUnaryMultiCallable[bytes, bytes]) -> None:
        self._call = call

    def __call__(self, request: bytes) -> bytes:
        return self._call(request, timeout=TIMEOUT_S)

    def timed(self, request: bytes) -> float:
        return one_by_one(lambda: self(request), 1)[0]


@dataclass(frozen=True, slots=True)
class Busy:
    """What a loop saw: the latency of each call in us, and how long all of them took in s."""

    latencies_us: tuple[float, ...]
    took_s: float

    @property
    def calls_per_s(self) -> float:
        return len(self.latencies_us) / self.took_s


def one_by_one(call: Callable[[], object], calls: int) -> list[float]:
    clock = time.perf_counter_ns
    found = []
    for _ in range(calls):
        started_ns = clock()
        call()
        found.append((clock() - started_ns) / 1e3)
    return found


def handled(
    handler: Callable[[bytes], bytes], requests: Sequence[bytes], calls: int
) -> list[float]:
    """Microseconds of calls of a handler, which are too short for a clock's reading each."""
    handler(requests[0])
    found = []
    for _ in range(calls):
        started_ns = time.perf_counter_ns()
        for request in requests:
            handler(request)
        found.append((time.perf_counter_ns() - started_ns) / 1e3 / len(requests))
    return found


def kept_busy(
    connections: Sequence[Connection], method: Method, request: bytes, streams: int, calls: int
) -> Busy:
    """Make `calls` calls in all, with so many `streams` in flight on each connection.

    Raises:
        CallFailed: a call ended with an error status, or a connection broke.
    """
    clock = time.perf_counter_ns
    latencies_us: list[float] = []
    started_ns: dict[ClientCall, int] = {}
    left = calls
    with selectors.DefaultSelector() as selector:
        began_ns = clock()
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ, connection)
            for _ in range(min(streams, left)):
                started_ns[connection.start(method, request)] = clock()
                left -= 1
        while started_ns:
            for key, _ in selector.select():
                connection = key.data
                for call in connection.ended():
                    call.result()
                    latencies_us.append((clock() - started_ns.pop(call)) / 1e3)
                    if left:
                        started_ns[connection.start(method, request)] = clock()
                        left -= 1
        took_s = (clock() - began_ns) / 1e9
    return Busy(tuple(latencies_us), took_s)


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that can be measured: `sample` returns one round of samples, in any unit."""

    name: str
    sample: Callable[[], list[float]]


def in_turns(
    subjects: Sequence[Subject],
    rounds: int,
    chance: Random,
    progress: Callable[[float], None] = lambda _share: None,
) -> dict[str, list[list[float]]]:
    """Samples of each subject by round; every round has its own order. `progress` gets 0 to 1."""
    found: dict[str, list[list[float]]] = {subject.name: [] for subject in subjects}
    order = list(subjects)
    with _no_collections():
        for number in range(rounds):
            chance.shuffle(order)
            for subject in order:
                found[subject.name].append(subject.sample())
            gc.collect(0)
            progress((number + 1) / rounds)
    return found


@contextmanager
def _no_collections() -> Iterator[None]:
    """Garbage of the measuring process is collected between rounds, not in them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
