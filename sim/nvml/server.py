"""The server behind the library: sessions over a unix socket.

That of pods answers those who are not trusted: they may look at what they were given, and take a
bounded part of the node's time and memory.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import secrets
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sim.nvml.pids import ProcessIds
from sim.nvml.visible import MOST_BYTES as MOST_VISIBLE_BYTES
from sim.nvml.visible import Visible
from sim.nvml.wire import HEAD, HELLO, HELLO_FUNCTION, LENGTH, MOST_BYTES, NotARequest, hello_bytes
from sim.socketfile import SocketFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sim.node.realtime import RealTimeNode
    from sim.nvml.abi import Function
    from sim.nvml.dispatch import Dispatcher, Hello, Request


log = logging.getLogger(__name__)

_CHUNK = 65536
_LONGEST_S = 3600.0
"""epoll cannot wait without an end in milliseconds."""


MOST_POD_CONNECTIONS: Final = 256
MOST_OF_ALIKE: Final = 64
"""Connections at a time of pods that were given the same devices, further ones are refused."""
MOST_POD_BYTES: Final = 65536
POD_CALLS_PER_S: Final = 2000
"""Assumed: of all pods together, so that they leave the plugin most of its time."""
_PACE_S = 0.05
GREETING_S: Final = 5.0
"""Within which a pod's connection has to introduce itself."""


def nvml_socket(kubelet_dir: Path) -> Path:
    return kubelet_dir / "gpuplugin-sim-nvml.sock"


@dataclass(slots=True)
class _Connection:
    """A connection of a process; `pending` is its call that has no answer yet."""

    socket: socket.socket
    session: int = 0
    visible: str = ""
    greet_by_s: float = math.inf
    received: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)
    blocked: bool = False
    """True while it takes no more bytes."""
    pending: Request | Hello | None = None
    due_s: float = math.inf
    """When it is to be tried again at the latest, on the monotonic clock."""


class NvmlServer:
    """Answers the library's calls on a unix socket until closed.

    With `for_pods` any user may connect. Such a session has handles and events of its own, cannot
    change the node, and sees the devices that it names, and no processes.
    """

    def __init__(
        self,
        node: RealTimeNode,
        path: Path,
        pids: ProcessIds | None = None,
        *,
        for_pods: bool = False,
    ) -> None:
        self._node = node
        self._for_pods = for_pods
        self._pids = pids or ProcessIds()
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(str(path))
            self._file = SocketFile(path)
            path.chmod(0o666 if for_pods else 0o600)
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
        self._dispatchers: dict[int, Dispatcher] = {}
        """By session; where all are trusted they have one in common, at 0."""
        self._functions: Sequence[Function] = ()
        self._abi = 0
        self._accepting = True
        self._closing = False
        self.calls = 0
        """How often a function was called by any process."""
        self._paced = (0.0, 0)
        self._thread = threading.Thread(target=self._run, name="sim-nvml", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering: every process sees that the node is gone. Once is enough."""
        if self._closing:
            return
        self._closing = True
        self._file.remove()
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
        finally:
            for connection in tuple(self._connections.values()):
                self._end(connection)
            self._selector.close()
            if self._functions:
                self._node.unwatch(self._woken)
            for dispatcher in self._dispatchers.values():
                dispatcher.close()
            self._listener.close()
            self._pids.close()

    def _turn(self) -> None:
        due_s = min(
            (min(one.due_s, one.greet_by_s) for one in self._connections.values()),
            default=math.inf,
        )
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
        if self._for_pods:
            self._pace()
        now_s = time.monotonic()
        for connection in tuple(self._connections.values()):
            if connection.greet_by_s <= now_s:
                self._end(connection)
            elif connection.pending is not None and (woken or connection.due_s <= now_s):
                self._try(connection)

    def _pace(self) -> None:
        """Rest where pods call more often than they may; each of them had its turn."""
        began_s, calls = self._paced
        now_s = time.monotonic()
        if now_s - began_s >= _PACE_S:
            self._paced = (now_s, self.calls)
        elif self.calls - calls >= POD_CALLS_PER_S * _PACE_S:
            time.sleep(began_s + _PACE_S - now_s)

    def _woken(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of file descriptors.
            log.warning("a client of the simulated NVML has to wait: %s", error)
            self._accept_no_more()
            return
        if not self._functions:
            self._set_up()
        accepted.setblocking(False)
        connection = self._connections[accepted.fileno()] = _Connection(accepted)
        self._selector.register(accepted, selectors.EVENT_READ)
        if self._for_pods:
            connection.greet_by_s = time.monotonic() + GREETING_S
            if len(self._connections) >= MOST_POD_CONNECTIONS:
                self._accept_no_more()

    def _accept_no_more(self) -> None:
        """Clients wait until another one has disconnected."""
        self._selector.unregister(self._listener)
        self._accepting = False

    def _set_up(self) -> None:
        # Imported late: it brings the whole Python binding of NVML with it.
        from sim.nvml.dispatch import FUNCTIONS, Dispatcher
        from sim.nvml.library import abi_hash

        if not self._for_pods:
            self._dispatchers[0] = Dispatcher(self._node, self._pids)
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
        if not HEAD.size <= length <= (MOST_POD_BYTES if self._for_pods else MOST_BYTES):
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
        elif connection.session and number < len(self._functions):
            function, dispatcher = self._functions[number], self._dispatcher(connection)
            self.calls += 1
            connection.pending = dispatcher.request(function, body, connection.session)
        else:
            raise NotARequest
        self._try(connection)

    def _greet(self, connection: _Connection, body: bytes) -> None:
        from hal.nvml.api import Code
        from sim.nvml.dispatch import Dispatcher, Hello

        if len(body) < HELLO.size or connection.session:
            raise NotARequest
        (abi, session), visible = HELLO.unpack_from(body), body[HELLO.size :]
        if len(visible) > MOST_VISIBLE_BYTES:
            raise NotARequest
        connection.visible = visible.decode("utf-8", "replace")
        connection.greet_by_s = math.inf
        alike = sum(one.visible == connection.visible for one in self._connections.values())
        refusal = Code.SUCCESS
        if abi != self._abi:
            refusal = Code.LIB_RM_VERSION_MISMATCH
        elif self._for_pods and alike > MOST_OF_ALIKE:
            refusal = Code.INSUFFICIENT_RESOURCES
        if refusal is not Code.SUCCESS:
            connection.unsent += hello_bytes(refusal, 0)
            self._send(connection)
            return
        if self._for_pods:
            # Nobody guesses another's; of one that ended before a restart there is nothing left.
            session = session if session in self._dispatchers else 0
            connection.session = session or secrets.randbits(63) + 1
            if not session:
                self._dispatchers[connection.session] = Dispatcher(
                    self._node, self._pids, Visible.read(connection.visible)
                )
        else:
            connection.session = session or next(self._sessions)
        connection.pending = Hello(session, connection.session)

    def _dispatcher(self, connection: _Connection) -> Dispatcher:
        return self._dispatchers[connection.session if self._for_pods else 0]

    def _try(self, connection: _Connection) -> None:
        """Answer what a connection asked, if that can be done now."""
        pending = connection.pending
        if pending is None:
            return
        connection.due_s = math.inf
        response = self._dispatcher(connection).response(pending)
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
            # Who does not take its answers is not asked for more.
            wanted = selectors.EVENT_WRITE if blocked else selectors.EVENT_READ
            self._selector.modify(connection.socket, wanted)

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
        if session and last:
            self._dispatcher(connection).end(session)
            if self._for_pods:
                self._dispatchers.pop(session).close()
