"""The fast engine: a thread per connection that reads, calls the handler and responds in place.

Right for a few local clients, and for handlers that respond from memory; those that may wait have
threads of their own. HTTP/2 and gRPC are in `h2`; here are sockets, threads and time.

A connection is worked on under its lock: by its own thread when the peer sent something, by any
thread whose `wake` finds the lock free, and by the keeper, a thread that accepts connections, waits
for sockets that took no more, and checks deadlines. `wake` never waits: if the lock is taken,
its holder checks for woken streams once more after the release.
"""

from __future__ import annotations

import logging
import math
import os
import select
import socket
import threading
import time
import weakref
from collections import Counter, deque
from contextlib import suppress
from struct import Struct
from typing import TYPE_CHECKING

from gpuplugin.rpc.h2.calls import ServerCalls, Stream
from gpuplugin.rpc.h2.connection import ServerConnection
from gpuplugin.rpc.services import RpcCode, RpcError, Service, SocketError, check_socket_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

MAX_CONNECTIONS = 32
"""One more takes the place of another one: see `FastServer._crowding`."""
MAX_WAITING_CALLS = 256
"""Of handlers that may wait, as many as pods of a large node; further ones wait for their turn."""
MAX_WAITING_BYTES = 1024 * 1024
"""A peer with so many responses that it does not read is not read from."""
STALL_S = 20.0
"""A peer that reads nothing, or does not finish what it began to send, is disconnected."""
CHECK_S = 1.0
"""How often the keeper checks what only time changes, while there is such."""

_PIECE_BYTES = 64 * 1024
_TURN_BYTES = 256 * 1024
_LOCK_S = 0.05
_SEND_BUFFER_BYTES = 512 * 1024
"""The send buffer of a connection, so that a list of 8,000 devices leaves at once."""
_FOREVER_S = -1.0
_ACCEPT_PAUSE_S = 0.1
_CLOSE_S = 1.0
_CREDENTIALS = Struct("3i")

log = logging.getLogger(__name__)


class FastEngine:
    def serve(self, socket_path: Path, services: Sequence[Service]) -> FastServer:
        check_socket_path(socket_path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if socket_path.is_socket():
                socket_path.unlink()
            listener.bind(str(socket_path))
            listener.listen(MAX_CONNECTIONS)
            listener.setblocking(False)
            return FastServer(listener, socket_path, _joined(services))
        except (OSError, RuntimeError) as error:  # the latter: there can be no more threads
            listener.close()
            raise SocketError(f"cannot listen on {socket_path}: {error}") from error


def _joined(services: Sequence[Service]) -> Service:
    return Service(
        "",
        {f"/{of.name}/{name}": call for of in services for name, call in of.unary.items()},
        {f"/{of.name}/{name}": call for of in services for name, call in of.streams.items()},
        frozenset(f"/{of.name}/{name}" for of in services for name in of.waiting),
    )


class _Workers:
    """Threads for handlers that may wait; daemon threads: one that hangs cannot hold an exit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._queue: deque[Callable[[], None]] = deque()

    def run(self, job: Callable[[], None]) -> None:
        """Run a job in a thread, at once or when one of many ends; raises `RpcError`."""
        with self._lock:
            if self._running >= MAX_WAITING_CALLS:
                self._queue.append(job)
                return
            self._running += 1
        try:
            threading.Thread(
                target=self._work, args=(job,), name="rpc-waiting", daemon=True
            ).start()
        except RuntimeError as error:
            with self._lock:
                self._running -= 1
            raise RpcError(RpcCode.RESOURCE_EXHAUSTED, f"no thread for a call: {error}") from error

    def _work(self, job: Callable[[], None]) -> None:
        while True:
            job()
            with self._lock:
                if not self._queue:
                    self._running -= 1
                    return
                job = self._queue.popleft()


class _Link:
    """One connection's socket, its lock and its thread."""

    def __init__(self, peer: socket.socket, server: FastServer) -> None:
        self.peer = peer
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self.descriptor = peer.fileno()
        self.calls = ServerCalls(
            server.service, self._wake, time.monotonic, server.unread_bytes, server.workers.run
        )
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.peer_process: int = _CREDENTIALS.unpack(credentials)[0]
        """0 for one of another pid namespace, as the kubelet is for a container."""
        self.opened_s = time.monotonic()
        self._connection = ServerConnection(self.calls)
        self.last_read_s = time.monotonic()
        self.unsent = b""
        self._crowded = False
        """True while the peer leaves more responses unread than are kept for it."""
        self._sent_s = 0.0
        self._server = server
        self._lock = threading.Lock()
        self._woken: deque[Stream] = deque()
        self.thread = threading.Thread(target=self._run, name="rpc", daemon=True)

    def check_time(self) -> None:
        if time.monotonic() >= self._server.stop_by_s:
            self.end()
        self._locked(_LOCK_S, self._check_time)

    def end(self) -> None:
        """Break the connection off; its thread does the rest."""
        with suppress(OSError):
            self.peer.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            self.unsent = b""
            self._connection.close()
            self.peer.close()
        self._woken.clear()
        self._server.links.discard(self)
        self._server.poke()

    def _check_time(self) -> None:
        if self._server.stop_by_s < math.inf:
            self._connection.drain()
        self._connection.check_time()
        late_s = time.monotonic() - STALL_S
        stalled = bool(self.unsent) and self._sent_s < late_s
        if stalled or (self._connection.unfinished and self.last_read_s < late_s):
            log.info("closing a client that does not %s", "read" if stalled else "send the rest")
            self.end()

    def _locked(self, wait_s: float, act: Callable[..., object], *args: object) -> None:
        """Do something and send what comes of it, unless the lock is not free within `wait_s`.

        Then check for woken streams: their `wake` has found the lock taken. This may be the
        publisher's thread, so errors stay here.
        """
        while self._lock.acquire(True, wait_s):
            try:
                act(*args)
                self._flush()
            except Exception:
                log.exception("a connection failed; its client will reconnect")
                self.end()
                self._connection.close()  # what is read before the end must not be acted on
            finally:
                self._lock.release()
            if not self._woken:
                break
            wait_s, act, args = 0.0, self._pull, ()

    def _run(self) -> None:
        try:
            self._locked(_FOREVER_S, self._pull)
            while data := self.peer.recv(_PIECE_BYTES):
                self.last_read_s = time.monotonic()
                self._locked(_FOREVER_S, self._connection.receive, data)
                if self._connection.acted or self.unsent:
                    self._have_checked()
                if self.unsent:
                    self._wait_for_reader()
        except OSError:
            log.debug("a client broke its connection off")
        finally:
            self.close()

    def _have_checked(self) -> None:
        """Wake the keeper if it would not look at this connection in time."""
        timed = self.timed and not self._server.checks
        if timed or self.calls.next_deadline_s < math.inf:
            self._server.poke()

    @property
    def timed(self) -> bool:
        return bool(self.unsent) or self._connection.timed

    def _wait_for_reader(self) -> None:
        """Read no more while the peer reads nothing itself, or its responses would pile up here."""
        writable = select.poll()
        writable.register(self.peer, select.POLLOUT)
        while self._crowded:
            if writable.poll(STALL_S * 1000) != [(self.descriptor, select.POLLOUT)]:
                self.end()
                return
            self.last_read_s = time.monotonic()
            self._locked(_FOREVER_S, self._pull)

    def _wake(self, stream: Stream) -> None:
        self._woken.append(stream)
        self._locked(0.0, self._pull)
        self._have_checked()

    def _pull(self) -> None:
        while self._woken:
            self.calls.pull(self._woken.popleft())

    def _flush(self) -> None:
        """Send what can be sent without waiting, for a turn. The lock is held.

        What is left after a turn is the keeper's, so that a list to a peer that reads as fast as
        it is written to does not keep the connection's thread from the lock.
        """
        turn_bytes = 0
        while data := self.unsent or self.calls.outbox.take(_PIECE_BYTES):
            sent = 0
            try:
                if turn_bytes < _TURN_BYTES:
                    sent = self.peer.send(data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
            except OSError:
                self.end()
                return
            turn_bytes += sent
            if sent < len(data):
                if sent or not self.unsent:
                    self._sent_s = time.monotonic()
                known, self.unsent = self.unsent, data[sent:]
                self._crowded = self.calls.outbox.waiting_bytes > MAX_WAITING_BYTES
                if not known:  # else the keeper knows, and is not to wake itself over and over
                    self._server.poke()
                return
            self.unsent, self._crowded = b"", False
        if self._connection.ended:
            self.end()


class FastServer:
    def __init__(self, listener: socket.socket, path: Path, service: Service) -> None:
        self.service = service
        self.workers = _Workers()
        self.stop_by_s = math.inf
        self._listener = listener
        self._path = path
        self._file = path.lstat()
        self.links: set[_Link] = set()
        """Its keys are changed and copied in one operation each, so without a lock."""
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Not in `stop`: a connection whose handler does not return may ring it long after.
        weakref.finalize(self, os.close, self._bell).atexit = False
        self.checks = False
        """True while the keeper comes back within `CHECK_S` anyway."""
        self._keeper = threading.Thread(target=self._keep, name="rpc-keeper", daemon=True)
        self._keeper.start()

    def stop(self, grace_s: float) -> None:
        """Stop; see `Server.stop`. A handler that does not return is left behind."""
        with suppress(OSError):  # the file, or its folder, was removed
            if os.path.samestat(self._path.lstat(), self._file):
                self._path.unlink()
        self.stop_by_s = time.monotonic() + grace_s
        self.poke()
        self._keeper.join()

    def unread_bytes(self) -> int:
        """What has come of incomplete requests, on all connections."""
        return sum(link.calls.unread_bytes for link in self.links.copy())

    def poke(self) -> None:
        os.eventfd_write(self._bell, 1)

    def _keep(self) -> None:
        while self.stop_by_s == math.inf:
            self._turn(math.inf)
        self._listener.close()
        while self.links and time.monotonic() < self.stop_by_s + _CLOSE_S:
            self._turn(_LOCK_S)

    def _turn(self, at_most_s: float) -> None:
        """Nothing else would start this thread again, so no error may end it."""
        try:
            self._wait_and_check(at_most_s)
        except Exception:
            log.exception("keeping the connections failed; trying again")
            time.sleep(_ACCEPT_PAUSE_S)

    def _wait_and_check(self, at_most_s: float) -> None:
        """Wait until something is to be done, and do it."""
        ready = select.poll()
        ready.register(self._bell, select.POLLIN)
        if self.stop_by_s == math.inf:
            ready.register(self._listener, select.POLLIN)
        links, now_s = self.links.copy(), time.monotonic()
        self.checks = False  # first: what is timed from now on wakes this
        self.checks = any(link.timed for link in links)
        due_s = now_s + (min(CHECK_S, at_most_s) if self.checks else at_most_s)
        for link in links:
            due_s = min(due_s, link.calls.next_deadline_s)
            if link.unsent:
                ready.register(link.descriptor, select.POLLOUT)
        wait_ms = None if due_s == math.inf else max(0.0, (due_s - now_s) * 1000)
        for descriptor, _ in ready.poll(wait_ms):
            if descriptor == self._bell:
                os.eventfd_read(self._bell)
            elif descriptor == self._listener.fileno():
                self._accept()
        for link in self.links.copy():
            link.check_time()

    def _crowding(self) -> _Link:
        """The connection that makes room: the one that is idle for longest.

        If none is idle, the newest one of the process that has most: a kubelet has one, which it
        keeps for long, and one more while it reconnects.
        """
        links = self.links.copy()
        if idle := [one for one in links if not one.calls.streams]:
            return min(idle, key=lambda one: one.last_read_s)
        held = Counter(one.peer_process for one in links)
        return max(links, key=lambda one: (held[one.peer_process], one.opened_s))

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError as error:
            log.warning("cannot accept a connection: %s; trying again", error)
            time.sleep(_ACCEPT_PAUSE_S)  # the client still waits, so it would be tried at once
            return
        if len(self.links) >= MAX_CONNECTIONS:
            log.warning("%d connections are open: closing one for a new one", len(self.links))
            crowding = self._crowding()
            crowding.end()
            self.links.discard(crowding)
        link = _Link(peer, self)
        self.links.add(link)
        try:
            link.thread.start()
        except RuntimeError as error:
            log.warning("no thread for a connection: %s", error)
            link.close()
