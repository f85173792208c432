"""The seam between services and the engine that carries them: tables of bytes -> bytes handlers.

A handler may be called from any thread, several at a time. How bytes travel is decided in an
engine: `fast` or `grpcio_engine`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

EngineName: TypeAlias = Literal["fast", "grpcio"]

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""What a gRPC client receives unless it raised its limit."""

MAX_REQUEST_BYTES = 4 * 1024 * 1024
"""What a server receives: the limit of grpc-go, so of NVIDIA's plugin."""

MAX_SOCKET_PATH_BYTES = 107
"""A unix socket's path must be shorter than 108 bytes on Linux (unix(7))."""


class RpcCode(IntEnum):
    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """A call that ends with an error status."""

    def __init__(self, code: RpcCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Subscription(Protocol):
    """One open stream's view of a published value: only the newest is kept."""

    closed: bool
    """True once the publisher wants the stream to end."""

    def take(self) -> bytes | None:
        """The newest message that was not taken yet, or None if there is none."""

    def close(self) -> None:
        """The stream has ended; safe to call twice."""


@dataclass(frozen=True, slots=True)
class Service:
    """A gRPC service: `name` is `package.Service`, the keys are method names.

    A unary handler takes the request's bytes and returns the response's, or raises `RpcError`. A
    stream handler is given a callable that wakes the engine when there is something to take (from
    any thread) and returns the stream's subscription, or raises `RpcError`. Unary handlers that
    `waiting` names may wait, for disks or for others: they hold up no other call.
    """

    name: str
    unary: Mapping[str, Callable[[bytes], bytes]]
    streams: Mapping[str, Callable[[Callable[[], None]], Subscription]]
    waiting: frozenset[str] = frozenset()


class Server(Protocol):
    def stop(self, grace_s: float) -> None:
        """Stop accepting, let running calls end for `grace_s`, remove the socket. Blocks."""


class Engine(Protocol):
    """Carries services over unix sockets."""

    def serve(self, socket_path: Path, services: Sequence[Service]) -> Server:
        """Listen and serve in background threads; raises `SocketError` with the reason."""


class SocketError(Exception):
    """A socket that cannot be served on."""


def grpc_target(socket: Path) -> str:
    """The gRPC target of a unix socket; gRPC decodes percent signs, so they are encoded."""
    return f"unix:{quote(str(socket))}"


def check_socket_path(path: Path) -> None:
    """Raise `SocketError` for a path that is too long to bind."""
    length = len(str(path).encode())
    if length > MAX_SOCKET_PATH_BYTES:
        raise SocketError(
            f"socket path {path} is {length} bytes long, the limit is {MAX_SOCKET_PATH_BYTES}; "
            "choose a folder with a shorter path"
        )
