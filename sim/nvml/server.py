"""The server behind the library: sessions over a unix socket, and the process ids that they see."""

from __future__ import annotations

import itertools
import logging
import math
import os
import selectors
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sim.nvml.wire import HEAD, HELLO, HELLO_FUNCTION, LENGTH, MOST_BYTES, NotARequest, hello_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.node.node import SimulatedNode
    from sim.node.realtime import RealTimeNode
    from sim.nvml.abi import Function
    from sim.nvml.dispatch import Dispatcher, Hello, Request


_LONGEST_NAME = 200
_REFRESH_S = 0.5
"""How often stand-ins are made to follow the tenants, at most."""


class ProcessIds:
    """The process ids that the library reports: those of the simulation, without processes."""

    def refresh(self, node: SimulatedNode) -> None:
        """Follow the tenants of the node."""

    def shown(self, pid: int) -> int:
        return pid

    def close(self) -> None:
        """End the processes."""


class StandIns(ProcessIds):
    """A real process for each tenant, which has its name in `cmdline` and `comm`."""

    def __init__(self) -> None:
        self._program = shutil.which("cat") or "/bin/cat"
        self._links = tempfile.TemporaryDirectory(prefix="gpuplugin-tenants-")
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._due_s = 0.0

    def refresh(self, node: SimulatedNode) -> None:
        now_s = time.monotonic()
        if now_s < self._due_s:
            return
        self._due_s = now_s + _REFRESH_S
        names = {process.pid: process.name for gpu in node.present for process in gpu.processes()}
        for pid in self._processes.keys() - names.keys():
            _end(self._processes.pop(pid))
        for pid in names.keys() - self._processes.keys():
            self._processes[pid] = self._start(names[pid])

    def shown(self, pid: int) -> int:
        """That of the stand-in; a tenant that came this moment has none yet."""
        process = self._processes.get(pid)
        return pid if process is None else process.pid

    def close(self) -> None:
        for process in self._processes.values():
            _end(process)
        self._processes.clear()
        self._links.cleanup()

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        # It reads from a pipe without a writer: however this process ends, so does that. The kernel
        # takes `comm` from the name of the file that is executed.
        return subprocess.Popen(
            [name],
            executable=self._link(name),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _link(self, name: str) -> Path:
        """The program under the name of a tenant, as far as a file can have it."""
        safe = name.replace("/", "_").replace("\0", "_").encode()[:_LONGEST_NAME]
        link = Path(self._links.name) / (safe.decode(errors="ignore").strip(".") or "tenant")
        if not link.is_symlink():
            link.symlink_to(self._program)
        return link


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


log = logging.getLogger(__name__)

_CHUNK = 65536
_LONGEST_S = 3600.0
"""epoll cannot wait without an end in milliseconds."""


def nvml_socket(kubelet_dir: Path) -> Path:
    return kubelet_dir / "gpuplugin-sim-nvml.sock"


@dataclass(slots=True)
class _Connection:
    """A connection of a process; `pending` is its call that has no answer yet."""

    socket: socket.socket
    session: int = 0
    received: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)
    blocked: bool = False
    """True while it takes no more bytes."""
    pending: Request | Hello | None = None
    due_s: float = math.inf
    """When it is to be tried again at the latest, on the monotonic clock."""


class NvmlServer:
    """Answers the library's calls on a unix socket until closed."""

    def __init__(self, node: RealTimeNode, path: Path, pids: ProcessIds | None = None) -> None:
        self._node = node
        self._pids = pids or ProcessIds()
        self._path = path
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(str(path))
            path.chmod(0o600)
            self._listener.listen(128)
        except OSError:
            self._listener.close()
            raise
        self._listener.setblocking(False)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._connections: dict[int, _Connection] = {}
        self._sessions = itertools.count(1)
        self._dispatcher: Dispatcher | None = None
        self._functions: Sequence[Function] = ()
        self._abi = 0
        self._accepting = True
        self._closing = False
        self.calls = 0
        """How often a function was called by any process."""
        self._thread = threading.Thread(target=self._run, name="sim-nvml", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering: every process sees that the node is gone. Once is enough."""
        if self._closing:
            return
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._path.unlink(missing_ok=True)
        os.close(self._wake)

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
        finally:
            for connection in tuple(self._connections.values()):
                self._end(connection)
            self._selector.close()
            if self._dispatcher is not None:
                self._node.unwatch(self._woken)
                self._dispatcher.close()
            self._listener.close()
            self._pids.close()

    def _turn(self) -> None:
        due_s = min((one.due_s for one in self._connections.values()), default=math.inf)
        woken = False
        for key, events in self._selector.select(
            min(_LONGEST_S, max(0.0, due_s - time.monotonic()))
        ):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fd == self._wake:
                os.eventfd_read(self._wake)
                woken = True
            else:
                self._serve(self._connections[key.fd], events)
        now_s = time.monotonic()
        for connection in tuple(self._connections.values()):
            if connection.pending is not None and (woken or connection.due_s <= now_s):
                self._try(connection)

    def _woken(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of file descriptors: clients wait until another one has disconnected.
            log.warning("a client of the simulated NVML has to wait: %s", error)
            self._selector.unregister(self._listener)
            self._accepting = False
            return
        if self._dispatcher is None:
            self._set_up()
        accepted.setblocking(False)
        self._connections[accepted.fileno()] = _Connection(accepted)
        self._selector.register(accepted, selectors.EVENT_READ)

    def _set_up(self) -> None:
        # Imported late: it brings the whole Python binding of NVML with it.
        from sim.nvml.dispatch import FUNCTIONS, Dispatcher
        from sim.nvml.library import abi_hash

        self._dispatcher = Dispatcher(self._node, self._pids)
        self._functions, self._abi = FUNCTIONS, abi_hash()
        self._node.watch(self._woken)

    def _serve(self, connection: _Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._send(connection)
            if events & selectors.EVENT_READ:
                chunk = connection.socket.recv(_CHUNK)
                if not chunk:
                    self._end(connection)
                    return
                connection.received += chunk
                self._read(connection)
        except BlockingIOError:
            pass
        except (OSError, NotARequest):
            self._end(connection)

    def _read(self, connection: _Connection) -> None:
        """Take a request from what was received; one at a time, the next is an error."""
        received = connection.received
        if len(received) < LENGTH.size:
            return
        (length,) = LENGTH.unpack_from(received)
        if not HEAD.size <= length <= MOST_BYTES:
            raise NotARequest
        if len(received) < LENGTH.size + length:
            return
        if connection.pending is not None or len(received) > LENGTH.size + length:
            raise NotARequest
        number, _ = HEAD.unpack_from(received, LENGTH.size)
        body = bytes(received[LENGTH.size + HEAD.size :])
        received.clear()
        if number == HELLO_FUNCTION:
            self._greet(connection, body)
        elif connection.session and number < len(self._functions) and self._dispatcher:
            function = self._functions[number]
            self.calls += 1
            connection.pending = self._dispatcher.request(function, body, connection.session)
        else:
            raise NotARequest
        self._try(connection)

    def _greet(self, connection: _Connection, body: bytes) -> None:
        from hal.nvml.api import Code
        from sim.nvml.dispatch import Hello

        if len(body) != HELLO.size or connection.session:
            raise NotARequest
        abi, session = HELLO.unpack(body)
        if abi != self._abi:
            connection.unsent += hello_bytes(Code.LIB_RM_VERSION_MISMATCH, 0)
            self._send(connection)
            return
        connection.session = session or next(self._sessions)
        connection.pending = Hello(session, connection.session)

    def _try(self, connection: _Connection) -> None:
        """Answer what a connection asked, if that can be done now."""
        pending, dispatcher = connection.pending, self._dispatcher
        if pending is None or dispatcher is None:
            return
        connection.due_s = math.inf
        response = dispatcher.response(pending)
        if response is None:
            # One whose time is over and that has no answer hangs: only a change can end that.
            if pending.deadline_s > time.monotonic():
                connection.due_s = pending.deadline_s
            return
        connection.pending = None
        connection.unsent += response
        try:
            self._send(connection)
        except OSError:
            self._end(connection)

    def _send(self, connection: _Connection) -> None:
        try:
            sent = connection.socket.send(connection.unsent)
        except BlockingIOError:
            sent = 0
        del connection.unsent[:sent]
        blocked = bool(connection.unsent)
        if blocked != connection.blocked:
            connection.blocked = blocked
            writing = selectors.EVENT_WRITE if blocked else 0
            self._selector.modify(connection.socket, selectors.EVENT_READ | writing)

    def _end(self, connection: _Connection) -> None:
        if self._connections.pop(connection.socket.fileno(), None) is None:
            return
        self._selector.unregister(connection.socket)
        connection.socket.close()
        if not self._accepting:
            self._selector.register(self._listener, selectors.EVENT_READ)
            self._accepting = True
        session = connection.session
        last = all(one.session != session for one in self._connections.values())
        if session and last and self._dispatcher:
            self._dispatcher.end(session)
