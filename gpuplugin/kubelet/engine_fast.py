"""The fast engine: a thread per connection that reads, calls the handler and answers in place.

Right for a kubelet, which is one local client, and for handlers that answer from memory. HTTP/2 and
gRPC are in `h2`; here are sockets, threads and time.

A connection is worked on under its lock: by its own thread when the peer sent something, by any
thread whose `wake` finds the lock free, and by the keeper, a thread that accepts connections, waits
for sockets that took no more, and looks after deadlines. `wake` never waits: if the lock is taken,
whoever has it looks for woken streams once more after letting go.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from gpuplugin.kubelet.h2.calls import Method, Stream, Streaming, Unary
from gpuplugin.kubelet.h2.connection import Connection
from gpuplugin.kubelet.rpc import SocketError, check_socket_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from gpuplugin.kubelet.rpc import Service

MAX_CONNECTIONS = 16
"""A kubelet opens one or two; one more than these closes the one that was idle for longest."""
MAX_WAITING_BYTES = 1024 * 1024
"""A peer with so many answers that it does not read is not read from."""
STALL_S = 20.0
"""A peer that takes nothing of what is sent, or does not go on with what it began, is left."""
LOOK_S = 1.0
"""How often the keeper looks at what only time changes."""

_READ_BYTES = 64 * 1024
_SEND_BYTES = 64 * 1024
_TURN_BYTES = 256 * 1024
_LOCK_S = 0.05
_ACCEPT_PAUSE_S = 0.1
_LAST_WORDS_S = 1.0

log = logging.getLogger(__name__)


class FastEngine:
    """See `gpuplugin.kubelet.rpc.Engine`."""

    def serve(self, socket_path: Path, services: Sequence[Service]) -> FastServer:
        """Listen on `socket_path`; see `Engine.serve`."""
        check_socket_path(socket_path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if socket_path.is_socket():
                socket_path.unlink()
            listener.bind(str(socket_path))
            listener.listen(MAX_CONNECTIONS)
            listener.setblocking(False)
            return FastServer(listener, socket_path, _methods(services))
        except (OSError, RuntimeError) as error:  # the latter: there can be no more threads
            listener.close()
            raise SocketError(f"cannot listen on {socket_path}: {error}") from error


def _methods(services: Sequence[Service]) -> dict[bytes, Method]:
    methods: dict[bytes, Method] = {}
    for service in services:
        for name, handler in service.unary.items():
            methods[f"/{service.name}/{name}".encode()] = Unary(handler)
        for name, subscribe in service.streams.items():
            methods[f"/{service.name}/{name}".encode()] = Streaming(subscribe)
    return methods


class _Link:
    """One connection's socket, its lock and its thread."""

    def __init__(self, peer: socket.socket, server: FastServer) -> None:
        self.peer = peer
        self.descriptor = peer.fileno()
        self.last_read_s = time.monotonic()
        self.unsent = memoryview(b"")
        self._server = server
        self._lock = threading.Lock()
        self._woken: deque[Stream] = deque()
        self._sent_s = 0.0
        self._next_deadline_s: float | None = None
        self._crowded = False
        self._gone = False
        self._connection = Connection(server.methods, self._wake, time.monotonic)
        self.thread = threading.Thread(target=self._run, name="rpc", daemon=True)

    @property
    def idle(self) -> bool:
        """True if no call is open on it."""
        return self._connection.idle

    def drain(self) -> bool:
        """Ask the peer to go, and close the connection once its calls have ended."""
        return self._locked(self._connection.drain)

    def end(self) -> None:
        """Break the connection off; its thread does the rest."""
        with suppress(OSError):
            self.peer.shutdown(socket.SHUT_RDWR)

    def look_after(self, now_s: float) -> float | None:
        """See to deadlines, to what was not sent, and to a peer that has stopped.

        Returns the next deadline, if there is one.
        """
        self._locked(lambda: self._look_after(now_s))
        return self._next_deadline_s

    def send_more(self) -> None:
        """Send what the socket did not take before."""
        self._locked(lambda: None)

    def _look_after(self, now_s: float) -> None:
        self._connection.look_after()
        stalled = bool(self.unsent) and now_s - self._sent_s > STALL_S
        silent = self._connection.unfinished and now_s - self.last_read_s > STALL_S
        if stalled or silent:
            log.info("a client that does not %s is left", "read" if stalled else "go on")
            self.end()

    def _locked(self, act: Callable[[], None]) -> bool:
        """Do something and send what comes of it; False if a call holds the lock for long."""
        if not self._lock.acquire(timeout=_LOCK_S):
            return False
        self._do_and_release(act)
        self._work()
        return True

    def _do_and_release(self, act: Callable[[], None]) -> None:
        """The same with the lock held. It may be the publisher's thread: errors stay here."""
        try:
            act()
            self._flush()
            self._next_deadline_s = self._connection.next_deadline_s
            self._crowded = self._connection.waiting_bytes > MAX_WAITING_BYTES
        except Exception:
            log.exception("a connection failed; its client will come back")
            self.end()
        finally:
            self._lock.release()

    def _run(self) -> None:
        try:
            self.send_more()
            while data := self.peer.recv(_READ_BYTES):
                self._read(data)
                if self.unsent:
                    self._wait_for_reader()
        except OSError:
            log.debug("a client broke its connection off")
        except Exception:
            log.exception("a connection failed; its client will come back")
        finally:
            self._close()

    def _read(self, data: bytes) -> None:
        self.last_read_s = time.monotonic()
        with self._lock:
            self._connection.receive(data)
            self._flush()
            self._next_deadline_s = self._connection.next_deadline_s
        if self._woken:
            self._work()
        if self._next_deadline_s is not None:
            self._server.poke()

    def _wait_for_reader(self) -> None:
        """Read no more while the peer reads nothing itself, or its answers would pile up here."""
        writable = select.poll()
        writable.register(self.peer, select.POLLOUT)
        self.send_more()
        while self._crowded and not self._gone:
            if not writable.poll(STALL_S * 1000):
                self.end()
                return
            self.last_read_s = time.monotonic()
            self.send_more()

    def _wake(self, stream: Stream) -> None:
        self._woken.append(stream)
        self._work()

    def _work(self) -> None:
        """Serve woken streams, unless another thread has the lock: it comes here afterwards."""
        while self._woken and self._lock.acquire(blocking=False):
            self._do_and_release(self._pull)

    def _pull(self) -> None:
        while self._woken:
            self._connection.pull(self._woken.popleft())

    def _flush(self) -> None:
        """Send what can be sent without waiting, for a turn. The lock is held.

        What is left after a turn is the keeper's, so that a list to a peer that reads as fast as
        it is written to does not keep the connection's thread from the lock.
        """
        turn_bytes = 0
        while not self._gone:
            data = self.unsent or self._connection.output(_SEND_BYTES)
            if not data:
                break
            try:
                sent = self.peer.send(data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._gone = True
                break
            if sent == len(data):
                self.unsent = memoryview(b"")
                turn_bytes += sent
                if turn_bytes < _TURN_BYTES:
                    continue
                sent, data = 0, self._connection.output(_SEND_BYTES)
                if not data:
                    break
            if sent or not self.unsent:
                self._sent_s = time.monotonic()
            self.unsent = memoryview(data)[sent:]
            self._server.poke()
            return
        if self._connection.ended or self._gone:
            self.end()

    def _close(self) -> None:
        """The connection is over: nothing of it stays."""
        with self._lock:
            self._gone = True
            self.unsent = memoryview(b"")
            self._connection.close()
            self.peer.close()
        self._woken.clear()
        self._server.forget(self)


class FastServer:
    """See `gpuplugin.kubelet.rpc.Server`."""

    def __init__(
        self, listener: socket.socket, path: Path, methods: Mapping[bytes, Method]
    ) -> None:
        self.methods = methods
        self._listener = listener
        self._path = path
        self._file = _identity(path)
        self._links: set[_Link] = set()
        self._lock = threading.Lock()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._accept_from_s = 0.0
        self._stop_by_s: float | None = None
        self._keeper = threading.Thread(target=self._keep, name="rpc-keeper", daemon=True)
        self._keeper.start()

    def stop(self, grace_s: float) -> None:
        """Stop; see `Server.stop`. A handler that does not return is left behind."""
        if self._file is not None and _identity(self._path) == self._file:
            self._path.unlink(missing_ok=True)
        self._stop_by_s = time.monotonic() + grace_s
        self.poke()
        self._keeper.join()
        with self._lock:
            if self._bell >= 0:
                os.close(self._bell)
                self._bell = -1

    def poke(self) -> None:
        """Let the keeper look at what has changed."""
        with self._lock:
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)

    def forget(self, link: _Link) -> None:
        """A connection is over."""
        with self._lock:
            self._links.discard(link)
        self.poke()

    def _keep(self) -> None:
        next_s: float | None = None
        while self._stop_by_s is None:
            self._wait(next_s, LOOK_S)
            next_s = self._look_after()
        self._listener.close()
        undrained = set(self._all())
        last_s = self._stop_by_s + _LAST_WORDS_S
        while self._links and time.monotonic() < last_s:
            undrained = {link for link in undrained if not link.drain()}
            if time.monotonic() >= self._stop_by_s:
                for link in self._all():
                    link.end()
            self._wait(self._look_after(), _LOCK_S)

    def _all(self) -> tuple[_Link, ...]:
        with self._lock:
            return tuple(self._links)

    def _wait(self, next_s: float | None, at_most_s: float) -> None:
        """Wait until something is to be done, and accept a connection if there is one."""
        links = self._all()
        now_s = time.monotonic()
        due = [now_s + at_most_s] if links else []
        due += [] if next_s is None else [next_s]
        ready = select.poll()
        ready.register(self._bell, select.POLLIN)
        if self._accept_from_s > now_s:
            due.append(self._accept_from_s)
        elif self._stop_by_s is None:
            ready.register(self._listener, select.POLLIN)
        for link in links:
            if link.unsent:
                ready.register(link.descriptor, select.POLLOUT)
        timeout_ms = None if not due else max(0.0, (min(due) - now_s) * 1000)
        for descriptor, _ in ready.poll(timeout_ms):
            if descriptor == self._bell:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._bell)
            elif descriptor == self._listener.fileno():
                self._accept()

    def _look_after(self) -> float | None:
        now_s = time.monotonic()
        times = [link.look_after(now_s) for link in self._all()]
        return min((one for one in times if one is not None), default=None)

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            log.warning("cannot accept a connection: %s; trying again", error)
            self._accept_from_s = time.monotonic() + _ACCEPT_PAUSE_S
            return
        links = self._all()
        if len(links) >= MAX_CONNECTIONS:
            idle = [link for link in links if link.idle]
            if not idle:
                log.warning("%d connections are open, one more is refused", len(links))
                peer.close()
                return
            min(idle, key=lambda link: link.last_read_s).end()
        peer.setblocking(True)
        link = _Link(peer, self)
        with self._lock:
            self._links.add(link)
        try:
            link.thread.start()
        except RuntimeError as error:
            log.warning("no thread for a connection: %s", error)
            self.forget(link)
            peer.close()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
