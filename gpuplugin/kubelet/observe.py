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


def observed(service: Service, observe: Observer) -> Service:
    """The same service; `observe` gets (method, gRPC code, seconds) of every unary call."""
    return replace(
        service,
        unary={name: _timed(name, handler, observe) for name, handler in service.unary.items()},
    )


def _timed(name: str, handler: Handler, observe: Observer) -> Handler:
    clock = time.perf_counter

    def call(request: bytes) -> bytes:
        started_s = clock()
        code = RpcCode.UNKNOWN
        try:
            answer = handler(request)
            code = RpcCode.OK
        except RpcError as error:
            code = error.code
            raise
        finally:
            observe(name, code.name, clock() - started_s)
        return answer

    return call
