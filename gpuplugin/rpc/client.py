"""gRPC calls over a unix socket without grpcio: one call alone, or many on a kept connection.

The protocol is that of `h2.client`; here are sockets and time.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Self

from gpuplugin.rpc.h2.client import (
    CallFailed,
    ClientCall,
    ClientConnection,
    ConnectionFailed,
    Method,
)
from gpuplugin.rpc.services import MAX_MESSAGE_BYTES, RpcCode

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "CallFailed",
    "ClientCall",
    "Connection",
    "ConnectionFailed",
    "Method",
    "unary_call",
    "unary_call_async",
]

_READ_BYTES = 64 * 1024
"""Below the size from which an allocation is a mapping of its own, which costs microseconds."""


class Connection:
    """A connection that is kept, for one thread, with any number of calls at a time.

    Every wait for the server ends after `timeout_s` (None: never).

    Raises:
        ConnectionFailed: from the constructor if nothing listens at `path`, and from any method
            once the server has closed the connection, broke the protocol, or did not respond.
    """

    def __init__(
        self,
        path: Path,
        timeout_s: float | None = None,
        max_response_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._path = path
        self._h2 = ClientConnection(max_response_bytes)
        self._ended: list[ClientCall] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise self._unusable(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def interrupt(self) -> None:
        """From any thread: end a wait for the server, which then fails."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it is closed already

    def call(self, method: Method, request: bytes) -> bytes:
        """Make a unary call and wait for its end; raises `CallFailed` for an error status."""
        call = self.start(method, request)
        while not call.ended:
            self._receive()
        self._ended.remove(call)
        return call.result()

    def start(self, method: Method, request: bytes, *, streaming: bool = False) -> ClientCall:
        call = self._h2.start(method, request, streaming=streaming)
        self._send()
        while call.rest and not call.ended:
            self._receive()
        return call

    def ended(self) -> list[ClientCall]:
        """The unary calls that have ended since the last time; waits for the server if none has."""
        if not self._ended:
            self._receive()
        ended, self._ended = self._ended, []
        return ended

    def next_response(self, call: ClientCall) -> bytes | None:
        """Wait for the next response of a stream; None after OK, else raises `CallFailed`."""
        while not call.responses and not call.ended:
            self._receive()
        if call.responses:
            return call.responses.pop(0)
        if call.error is not None:
            raise call.error
        return None

    def cancel(self, call: ClientCall) -> None:
        self._h2.cancel(call)
        self._send()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except OSError as error:
            raise self._unusable(error) from error
        self._ended += self._h2.receive(data)
        self._send()

    def _send(self) -> None:
        if data := self._h2.output():
            try:
                self._socket.sendall(data)
            except OSError as error:
                raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> ConnectionFailed:
        if isinstance(error, TimeoutError):
            text = f"no response from {self._path} in {self._socket.gettimeout():g} s"
            return ConnectionFailed(RpcCode.DEADLINE_EXCEEDED, text)
        return ConnectionFailed(RpcCode.UNAVAILABLE, f"cannot use {self._path}: {error}")


def unary_call(
    socket_path: Path,
    method: str,
    request: bytes,
    timeout_s: float,
    max_response_bytes: int = MAX_MESSAGE_BYTES,
) -> bytes:
    """Call `/package.Service/Method` with a deadline; raises `CallFailed`."""
    deadline_s = time.monotonic() + timeout_s
    connection = ClientConnection(max_response_bytes)
    call = connection.start(Method.of(method, timeout_s), request)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(timeout_s)
            peer.connect(str(socket_path))
            while not call.ended:
                peer.sendall(connection.output())
                peer.settimeout(max(deadline_s - time.monotonic(), 1e-6))
                connection.receive(peer.recv(_READ_BYTES))
    except OSError as error:
        raise _failed(error, socket_path, timeout_s) from error
    return call.result()


async def unary_call_async(
    socket_path: Path, method: str, request: bytes, timeout_s: float
) -> bytes:
    """As `unary_call`, on the event loop; a cancellation ends the call at once."""
    connection = ClientConnection(MAX_MESSAGE_BYTES)
    call = connection.start(Method.of(method, timeout_s), request)
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(str(socket_path))
            try:
                while not call.ended:
                    writer.write(connection.output())
                    await writer.drain()
                    connection.receive(await reader.read(_READ_BYTES))
            finally:
                writer.close()
    except OSError as error:
        raise _failed(error, socket_path, timeout_s) from error
    return call.result()


def _failed(error: OSError, socket_path: Path, timeout_s: float) -> CallFailed:
    if isinstance(error, TimeoutError):
        return CallFailed(RpcCode.DEADLINE_EXCEEDED, f"no response in {timeout_s:g} s")
    return CallFailed(RpcCode.UNAVAILABLE, f"cannot use {socket_path}: {error}")
