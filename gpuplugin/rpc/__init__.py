"""Carries gRPC calls over unix sockets: engines, HTTP/2 and a client. Knows no kubelet.

A service is a table of bytes -> bytes handlers (`services`), an engine serves it (`fast`, on `h2`,
or `grpcio_engine`), `client` calls one. Each of the three is loaded on first use.
"""

from typing import assert_never

from gpuplugin.rpc.services import (
    Engine,
    EngineName,
    RpcCode,
    RpcError,
    Server,
    Service,
    SocketError,
    Subscription,
)

__all__ = [
    "Engine",
    "EngineName",
    "RpcCode",
    "RpcError",
    "Server",
    "Service",
    "SocketError",
    "Subscription",
    "make_engine",
]


def make_engine(name: EngineName) -> Engine:
    """The engine of that name, which is loaded by this: grpcio alone takes 10 MiB."""
    match name:
        case "fast":
            from gpuplugin.rpc.fast import FastEngine

            return FastEngine()
        case "grpcio":
            from gpuplugin.rpc.grpcio_engine import GrpcioEngine

            return GrpcioEngine()
        case _:
            assert_never(name)
