"""Servers in processes of their own: the plugin's handlers on an engine, and the floors.

Whole plugins are started by `plugins`.
"""

from __future__ import annotations

import multiprocessing
import signal
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Protocol

from benchmarks.devices import Topology, plugin_for
from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.kubelet.deviceplugin import SERVICE_NAME, DevicePlugin
from gpuplugin.kubelet.snapshot import snapshot_of
from gpuplugin.rpc import EngineName, Service, make_engine
from gpuplugin.rpc.h2 import frames, grpcwire
from gpuplugin.rpc.h2.client import ClientConnection
from gpuplugin.rpc.publication import Publication
from gpuplugin.rpc.services import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

ENGINES: tuple[EngineName, ...] = ("grpcio", "fast")
"""The library first: the other engine is compared with it."""

RENEW = "Renew"
"""A method beside those of the kubelet's: the next choice is the first one of a new plugin."""

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0


class DidNotStart(Exception):
    """A server or plugin that did not come up; the text says why."""


class Serves(Protocol):
    """What runs in the process of a server; it travels there by pickle."""

    def serve(self, path: Path, stop: Connection) -> None:
        """Serve at `path` until `stop` is closed."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """The plugin's handlers, measured as in the daemon, for GPUs that are made up."""

    engine: EngineName
    gpus: int
    replicas: int
    topology: Topology | None = None

    def serve(self, path: Path, stop: Connection) -> None:
        plugin = plugin_for(self.gpus, self.replicas, self.topology)
        run_engine(self.engine, path, daemon_like(plugin), stop)


@dataclass(frozen=True, slots=True)
class EmptyHandler:
    """Every method answers nothing at once, and the list is empty; `RENEW` works as for `like`."""

    engine: EngineName
    like: Handlers | None = None

    def serve(self, path: Path, stop: Connection) -> None:
        devices = Publication()
        devices.publish(b"")
        names = ("Allocate", "GetPreferredAllocation", RENEW)
        unary: dict[str, Callable[[bytes], bytes]] = {name: lambda _request: b"" for name in names}
        if self.like is not None:
            plugin = plugin_for(self.like.gpus, self.like.replicas, self.like.topology)
            unary[RENEW] = daemon_like(plugin).unary[RENEW]
        service = Service(SERVICE_NAME, unary, {"ListAndWatch": devices.subscribe})
        run_engine(self.engine, path, service, stop)


@dataclass(frozen=True, slots=True)
class Echo:
    """No gRPC: so many bytes are read, and frames made in advance are sent, by a bare thread.

    It has one connection at a time, whose calls have requests of one size, one after the other.
    """

    request_bytes: int
    response: bytes

    def serve(self, path: Path, stop: Connection) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen()
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            _until(stop)

    def _accept(self, listener: socket.socket) -> None:
        marker = frames.U32.pack(frames.MOST_31_BITS)
        pieces = self._frames(frames.MOST_31_BITS).split(marker)
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # it was closed: the measurement has ended
            with client:
                client.sendall(frames.numbers(frames.WINDOW_UPDATE, 0, 1 << 30))
                expected_bytes = len(ClientConnection(MAX_MESSAGE_BYTES).output())
                stream_id = 1
                while _read_exactly(client, expected_bytes + self.request_bytes):
                    client.sendall(frames.U32.pack(stream_id).join(pieces))
                    expected_bytes = 0
                    stream_id += 2

    def _frames(self, stream_id: int) -> bytes:
        end = frames.END_HEADERS | frames.END_STREAM
        message = grpcwire.message_prefix(len(self.response)) + self.response
        return (
            frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, grpcwire.RESPONSE_BLOCK)
            + frames.frame(frames.DATA, 0, stream_id, message)
            + frames.frame(frames.HEADERS, end, stream_id, grpcwire.OK_BLOCK)
        )


def _read_exactly(client: socket.socket, count: int) -> bool:
    """Read so many bytes and drop them; False if the other side ended before."""
    left = count
    while left > 0:
        data = client.recv(left)
        if not data:
            return False
        left -= len(data)
    return True


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that are started in the block leave Ctrl-C to this one, which ends them.

    They would print a traceback each.
    """
    resource_tracker.ensure_running()  # its start lets Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def serving(path: Path, what: Serves) -> Iterator[int]:
    """The process id of a server that listens at `path` until the block ends.

    Raises:
        DidNotStart: it ended, or did not listen in time.
    """
    # A new interpreter, as a plugin has: nothing of this process is in its memory.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(what, path, theirs), daemon=True)
    with deaf_to_ctrl_c():
        process.start()
    theirs.close()
    try:
        if not ours.poll(START_TIMEOUT_S):
            raise DidNotStart(f"{what} does not serve after {START_TIMEOUT_S:g} s")
        try:
            ours.recv()
        except EOFError as error:
            raise DidNotStart(f"{what} ended before it served") from error
        yield process.pid or 0
    finally:
        ours.close()
        process.join(STOP_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()
        path.unlink(missing_ok=True)


def daemon_like(plugin: DevicePlugin) -> Service:
    """The service as the daemon serves it, with its metrics around; and `RENEW`."""
    service = with_metrics(plugin.service(), plugin.snapshot.resource.name)

    def renew(_request: bytes) -> bytes:
        snapshot = plugin.snapshot
        plugin.update(snapshot_of(snapshot.resource, snapshot.plan), lambda _gpu, _mig: True)
        return b""

    return Service(service.name, {**service.unary, RENEW: renew}, service.streams)


def with_metrics(service: Service, resource: str) -> Service:
    return Metrics().calls[resource].wrap(service)


def run_engine(engine: EngineName, path: Path, service: Service, stop: Connection) -> None:
    """Serve on an engine until `stop` has news; for the process of a server."""
    server = make_engine(engine).serve(path, [service])
    _until(stop)
    server.stop(0)


def _run(what: Serves, path: Path, pipe: Connection) -> None:
    what.serve(path, pipe)


def _until(stop: Connection) -> None:
    """Say that it serves, and wait until the other end closes, as it does when it dies."""
    stop.send(None)
    try:
        stop.recv()
    except (EOFError, OSError):
        return
