"""The engine on grpcio's synchronous server: gRPC over unix sockets, handlers in a thread pool."""

from __future__ import annotations

import logging
import threading
from concurrent.futures.thread import ThreadPoolExecutor
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

import grpc

from gpuplugin.rpc.services import (
    MAX_REQUEST_BYTES,
    RpcCode,
    RpcError,
    Service,
    SocketError,
    check_socket_path,
    grpc_target,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from gpuplugin.rpc.services import Subscription

_WORKERS = 48
"""Threads for calls; every open stream holds one, so there are more than streams.

All are started before the first call: if one cannot be started later, the library stops serving.
"""
_START_S = 10.0

_MAX_CONNECTIONS = 128
_IDLE_MS = 10_000
"""A connection without a call is closed after this time, so the kubelet finds room again."""

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
    ("grpc.max_allowed_incoming_connections", _MAX_CONNECTIONS),
    ("grpc.max_connection_idle_ms", _IDLE_MS),
    ("grpc.server_handshake_timeout_ms", _IDLE_MS),
)

for _name in ("grpc._server", "grpc._utilities"):
    import_module(_name)  # grpc would, in the thread that serves first

_CODES = {code.value[0]: code for code in grpc.StatusCode}

log = logging.getLogger(__name__)


class GrpcioEngine:
    def serve(self, socket_path: Path, services: Sequence[Service]) -> GrpcioServer:
        check_socket_path(socket_path)
        pool = _started(ThreadPoolExecutor(_WORKERS, thread_name_prefix="rpc"), socket_path)
        server = grpc.server(pool, options=_OPTIONS)
        for service in services:
            server.add_generic_rpc_handlers((_generic_handler(service),))
        try:
            server.add_insecure_port(grpc_target(socket_path))
        except RuntimeError as error:
            pool.shutdown(wait=False)
            raise SocketError(f"cannot listen on {socket_path}: {error}") from error
        server.start()
        return GrpcioServer(server, pool)


def _started(pool: ThreadPoolExecutor, socket_path: Path) -> ThreadPoolExecutor:
    """Start all threads of the pool: it starts one only while no other one is idle."""
    all_run = threading.Barrier(_WORKERS + 1)
    try:
        for _ in range(_WORKERS):
            pool.submit(all_run.wait, _START_S)
        all_run.wait(_START_S)
    except (RuntimeError, threading.BrokenBarrierError) as error:
        all_run.abort()
        pool.shutdown(wait=False)
        raise SocketError(f"no threads to serve {socket_path}: {error}") from error
    return pool


class GrpcioServer:
    def __init__(self, server: grpc.Server, pool: ThreadPoolExecutor) -> None:
        self._server = server
        self._pool = pool

    def stop(self, grace_s: float) -> None:
        self._server.stop(grace_s).wait(grace_s + 5)
        self._pool.shutdown(wait=False, cancel_futures=True)


def _generic_handler(service: Service) -> grpc.GenericRpcHandler:
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        name: grpc.unary_unary_rpc_method_handler(_unary(handler))
        for name, handler in service.unary.items()
    }
    methods |= {
        name: grpc.unary_stream_rpc_method_handler(_stream(handler))
        for name, handler in service.streams.items()
    }
    return grpc.method_handlers_generic_handler(service.name, methods)


def _unary(handler: Callable[[bytes], bytes]) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    def call(request: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return handler(request)
        except RpcError as error:
            _abort(context, error)

    return call


def _stream(
    subscribe: Callable[[Callable[[], None]], Subscription],
) -> Callable[[bytes, grpc.ServicerContext], Iterator[bytes]]:
    def call(_request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        wake = threading.Event()
        try:
            subscription = subscribe(wake.set)
        except RpcError as error:
            _abort(context, error)
        try:
            if context.add_callback(wake.set):
                yield from _messages(subscription, wake, context)
        finally:
            subscription.close()

    return call


def _messages(
    subscription: Subscription, wake: threading.Event, context: grpc.ServicerContext
) -> Iterator[bytes]:
    while True:
        wake.wait()
        wake.clear()
        if subscription.closed or not context.is_active():
            return
        message = subscription.take()
        if message is not None:
            yield message


def _abort(context: grpc.ServicerContext, error: RpcError) -> NoReturn:
    context.abort(_CODES.get(RpcCode(error.code).value, grpc.StatusCode.UNKNOWN), error.message)
