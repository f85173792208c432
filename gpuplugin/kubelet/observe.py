"""Measures the handlers of a service without touching them."""

from __future__ import annotations

import time
from dataclasses import replace
from threading import get_ident
from typing import TYPE_CHECKING, TypeAlias

from gpuplugin.kubelet.rpc import RpcCode, RpcError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuplugin.kubelet.rpc import Service

    Handler: TypeAlias = Callable[[bytes], bytes]
    Observer: TypeAlias = Callable[[str, str, float], None]
    Running: TypeAlias = dict[int, str]
    """The method that a thread is in, by the thread; one assignment each, so it needs no lock."""


def observed(service: Service, observe: Observer, running: Running | None = None) -> Service:
    """The same service; `observe` gets (method, gRPC code, seconds) of every unary call.

    `running` has the calls that are being answered.
    """
    calls: Running = {} if running is None else running
    return replace(
        service,
        unary={
            name: _timed(name, handler, observe, calls) for name, handler in service.unary.items()
        },
    )


def _timed(name: str, handler: Handler, observe: Observer, running: Running) -> Handler:
    clock = time.perf_counter

    def call(request: bytes) -> bytes:
        thread = get_ident()
        running[thread] = name
        started_s = clock()
        code = _UNKNOWN
        try:
            answer = handler(request)
            code = _OK
        except RpcError as error:
            code = error.code.name
            raise
        finally:
            running.pop(thread, None)
            observe(name, code, clock() - started_s)
        return answer

    return call


_OK, _UNKNOWN = RpcCode.OK.name, RpcCode.UNKNOWN.name
