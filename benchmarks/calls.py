"""What calls a server: the lean client, the one of grpcio, and that of the echo floor."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import grpc

from benchmarks.client import TIMEOUT_S, Connection, ConnectionLost, Method
from benchmarks.servers import read_exactly
from gpuplugin.kubelet.deviceplugin import SERVICE_NAME
from gpuplugin.rpc.services import grpc_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ClientName: TypeAlias = Literal["raw", "grpcio"]


class Client(Protocol):
    """Calls methods of the device plugin's service, one after the other."""

    def caller(self, method: str) -> Callable[[bytes], bytes]:
        """A method as a function of a serialised request."""
        ...

    def close(self) -> None:
        """Disconnect."""
        ...


def client(name: ClientName, path: Path) -> Client:
    """A client of the server at a socket.

    Raises:
        ConnectionLost: nobody listens there (the lean client).
    """
    return RawClient(path) if name == "raw" else GrpcioClient(path)


def device_plugin_method(name: str) -> Method:
    """A method of the device plugin's service, for a `Connection`."""
    return Method.of(f"/{SERVICE_NAME}/{name}")


class RawClient:
    """See `Client`; on `benchmarks.client`."""

    def __init__(self, path: Path) -> None:
        self._connection = Connection(path)

    def caller(self, method: str) -> Callable[[bytes], bytes]:
        """See `Client`."""
        return partial(self._connection.call, device_plugin_method(method))

    def close(self) -> None:
        """See `Client`."""
        self._connection.close()


class GrpcioClient:
    """See `Client`; on grpcio, which costs more than most servers."""

    def __init__(self, path: Path) -> None:
        self._channel = grpc.insecure_channel(
            grpc_target(path), options=(("grpc.max_receive_message_length", -1),)
        )

    def caller(self, method: str) -> Callable[[bytes], bytes]:
        """See `Client`."""
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            f"/{SERVICE_NAME}/{method}"
        )
        return lambda payload: call(payload, timeout=TIMEOUT_S)

    def close(self) -> None:
        """See `Client`."""
        self._channel.close()


class EchoClient:
    """Sends and reads as many bytes as the echo server does.

    Raises:
        ConnectionLost: nobody listens there, or the server went away.
    """

    def __init__(self, path: Path, request_bytes: int, answer_bytes: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(TIMEOUT_S)
        self._request = bytes(request_bytes)
        self._answer_bytes = answer_bytes
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise ConnectionLost(f"nobody answers at {path}: {error}") from error

    def call(self) -> None:
        """There and back."""
        self._socket.sendall(self._request)
        if not read_exactly(self._socket, self._answer_bytes):
            raise ConnectionLost("the echo server went away")

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()
