"""Servers in processes of their own: the plugin's handlers on an engine, and the floors.

What they answer is made there; a `Server` here is the handle of one. Other people's plugins, and
the whole daemon, are started by `plugins`.
"""

from __future__ import annotations

import multiprocessing
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from benchmarks.devices import Topology, plugin_for
from benchmarks.engines import ENGINES
from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.kubelet.deviceplugin import SERVICE_NAME, DevicePlugin
from gpuplugin.kubelet.publication import Publication
from gpuplugin.kubelet.snapshot import snapshot_of
from gpuplugin.rpc.services import Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

RENEW = "Renew"
"""A method beside those of the kubelet's: the next choice is the first one of a new plugin."""

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0


class DidNotStart(Exception):
    """A server or plugin that did not come up; the text says why."""


class Serves(Protocol):
    """What runs in the process of a server; it travels there by pickle."""

    def serve(self, path: Path, stop: Connection) -> None:
        """Serve until `stop` has news."""
        ...


@dataclass(frozen=True, slots=True)
class Handlers:
    """The plugin's handlers, measured as in the daemon, for GPUs that are made up."""

    engine: str
    gpus: int
    replicas: int
    topology: Topology | None = None

    def serve(self, path: Path, stop: Connection) -> None:
        """Serve until `stop` has news."""
        plugin = plugin_for(self.gpus, self.replicas, self.topology)
        run_engine(self.engine, path, daemon_like(plugin), stop)


@dataclass(frozen=True, slots=True)
class EmptyHandler:
    """Every method answers nothing at once, and the list is empty."""

    engine: str

    def serve(self, path: Path, stop: Connection) -> None:
        """Serve until `stop` has news."""
        devices = Publication()
        devices.publish(b"")
        names = ("Allocate", "GetPreferredAllocation", RENEW)
        unary = {name: lambda _request: b"" for name in names}
        service = Service(SERVICE_NAME, unary, {"ListAndWatch": devices.subscribe})
        run_engine(self.engine, path, service, stop)


@dataclass(frozen=True, slots=True)
class Echo:
    """No gRPC: so many bytes are read, so many are sent, by a thread for each connection."""

    request_bytes: int
    answer_bytes: int

    def serve(self, path: Path, stop: Connection) -> None:
        """Serve until `stop` has news."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen()
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            _until(stop)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        answer = bytes(self.answer_bytes)
        with client:
            while read_exactly(client, self.request_bytes):
                client.sendall(answer)


def read_exactly(client: socket.socket, count: int) -> bool:
    """Read so many bytes and drop them; False if the other side ended before."""
    left = count
    while left > 0:
        data = client.recv(left)
        if not data:
            return False
        left -= len(data)
    return True


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
    """The service with the daemon's metrics of calls around it."""
    return Metrics().calls.of(resource).wrap(service)


def run_engine(engine: str, path: Path, service: Service, stop: Connection) -> None:
    """Serve on an engine until `stop` has news; for the process of a server."""
    server = ENGINES[engine].make().serve(path, [service])
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
