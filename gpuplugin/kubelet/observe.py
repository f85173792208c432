"""Measures the handlers of a service without touching them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from gpuplugin.kubelet.rpc import RpcCode, RpcError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuplugin.kubelet.rpc import Service

    Handler: TypeAlias = Callable[[bytes], bytes]
    Observer: TypeAlias = Callable[[str, str, float], None]
    InFlight: TypeAlias = Callable[[str, int], None]


def observed(
    service: Service, observe: Observer, in_flight: InFlight = lambda _method, _more: None
) -> Service:
    """The same service; `observe` gets (method, gRPC code, seconds) of every unary call.

    `in_flight` gets (method, 1) when a call begins and (method, -1) when it ends.
    """
    return replace(
        service,
        unary={
            name: _timed(name, handler, observe, in_flight)
            for name, handler in service.unary.items()
        },
    )


def _timed(name: str, handler: Handler, observe: Observer, in_flight: InFlight) -> Handler:
    clock = time.perf_counter

    def call(request: bytes) -> bytes:
        in_flight(name, 1)
        started_s = clock()
        code = RpcCode.UNKNOWN
        try:
            answer = handler(request)
            code = RpcCode.OK
        except RpcError as error:
            code = error.code
            raise
        finally:
            in_flight(name, -1)
            observe(name, code.name, clock() - started_s)
        return answer

    return call
