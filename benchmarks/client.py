"""A client of one connection that costs the same whoever answers, and knows what it costs.

A call's time begins before its bytes are sent, which were made before, and ends when the last bytes
of the answer are in: what is made of them comes after that. Frames beside the answer
(WINDOW_UPDATE, PING, SETTINGS) are responded to between two calls.
"""

from __future__ import annotations

import socket
import time
from statistics import median
from typing import TYPE_CHECKING, Self

from gpuplugin.rpc.client import ConnectionFailed, Method
from gpuplugin.rpc.h2.client import ClientConnection
from gpuplugin.rpc.services import MAX_MESSAGE_BYTES, RpcCode

if TYPE_CHECKING:
    from pathlib import Path

_READ_BYTES = 64 * 1024


class TimedClient:
    """Calls of one method, one after the other.

    `latencies_us` and `own_us` grow by one at each `timed` call: how long it took, and how much of
    that was spent in this process, outside of system calls.

    Raises:
        ConnectionFailed: nothing listens there, or it ended the connection.
    """

    def __init__(self, path: Path, method: Method, timeout_s: float) -> None:
        self._path = path
        self._method = method
        self._h2 = ClientConnection(MAX_MESSAGE_BYTES)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        self.latencies_us: list[float] = []
        self.own_us: list[float] = []
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise self._failed(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()

    def __call__(self, request: bytes) -> bytes:
        """The response; raises `CallFailed` for an error status."""
        return self._call(request)[0]

    def timed(self, request: bytes) -> float:
        """Microseconds of a call."""
        _, took_us, own_us = self._call(request)
        self.latencies_us.append(took_us)
        self.own_us.append(own_us)
        return took_us

    @property
    def own_share(self) -> float:
        """The part of a median call that is this client's own."""
        if not self.latencies_us:
            return 0.0
        return median(self.own_us) / median(self.latencies_us)

    def _call(self, request: bytes) -> tuple[bytes, float, float]:
        clock, receive, h2 = time.perf_counter_ns, self._socket.recv, self._h2
        call = h2.start(self._method, request)
        data = h2.output()
        in_kernel_ns = 0
        try:
            began_ns = clock()
            self._socket.sendall(data)
            at_ns = clock()
            in_kernel_ns += at_ns - began_ns
            while True:
                waits_ns = clock()
                data = receive(_READ_BYTES)
                at_ns = clock()
                in_kernel_ns += at_ns - waits_ns
                h2.receive(data)
                if call.ended:
                    break
                if call.rest:  # the request did not fit the windows
                    self._socket.sendall(h2.output())
            if beside := h2.output():
                self._socket.sendall(beside)
        except OSError as error:
            raise self._failed(error) from error
        took_ns = at_ns - began_ns
        return call.result(), took_ns / 1e3, (took_ns - in_kernel_ns) / 1e3

    def _failed(self, error: OSError) -> ConnectionFailed:
        return ConnectionFailed(RpcCode.UNAVAILABLE, f"cannot use {self._path}: {error}")
