"""Carries gRPC calls over unix sockets: engines, HTTP/2 and a client. Knows no kubelet.

A service is a table of bytes -> bytes handlers (`services`), an engine serves it (`fast`, on `h2`,
or `grpcio_engine`), `client` calls one. Each of the three is loaded on first use.
"""

from gpuplugin.rpc.services import (
    Engine,
    EngineName,
    RpcCode,
    RpcError,
    Server,
    Service,
    SocketError,
    Subscription,
    make_engine,
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
