"""Measures the handlers of a service without touching them: how many calls, how long, how they end.

What a thread counts is written by that thread alone, so nothing is locked; a reader adds it up. How
the counts are exported is not here.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass, replace
from threading import get_ident
from typing import TYPE_CHECKING, TypeAlias

from gpuplugin.rpc.services import RpcCode, RpcError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gpuplugin.rpc.services import Service

    Handler: TypeAlias = Callable[[bytes], bytes]
    _Row: TypeAlias = list[float]
    """What a thread has counted: 1 while a call runs, seconds in all, calls by bucket."""

BOUNDS_S = (50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 50e-3, 0.25, 1.0)
"""Upper bounds of the buckets; one more is for all that is longer."""

_RUNNING, _SUM, _BUCKETS = 0, 1, 2
_OK = RpcCode.OK.name


@dataclass(frozen=True, slots=True)
class CallCounts:
    """Calls of a method that ended with a gRPC code, by bucket of `BOUNDS_S`."""

    method: str
    code: str
    by_bucket: Sequence[int]
    seconds: float


class CallStats:
    """Counts of the calls of one service, for as long as it is served, on whichever socket."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], dict[int, _Row]] = {}

    def wrap(self, service: Service) -> Service:
        """The same service; its unary calls are counted."""
        for name in service.unary:
            # There from the start: a first refusal would otherwise be no increase to Prometheus.
            for code in (_OK, RpcCode.INVALID_ARGUMENT.name):
                self._of(name, code)
        return replace(
            service,
            unary={name: self._timed(name, handler) for name, handler in service.unary.items()},
        )

    def calls(self) -> Iterator[CallCounts]:
        for (method, code), rows in list(self._rows.items()):
            sums = [sum(column) for column in zip(*list(rows.values()), strict=True)] or _new_row()
            yield CallCounts(method, code, [int(one) for one in sums[_BUCKETS:]], sums[_SUM])

    def running(self) -> dict[str, int]:
        return {
            method: sum(row[_RUNNING] > 0 for row in list(rows.values()))
            for (method, code), rows in list(self._rows.items())
            if code == _OK
        }

    def _of(self, method: str, code: str) -> dict[int, _Row]:
        return self._rows.setdefault((method, code), {})

    def _failed(self, method: str, error: BaseException, took_s: float) -> None:
        code = error.code if isinstance(error, RpcError) else RpcCode.UNKNOWN
        row = self._of(method, code.name).setdefault(get_ident(), _new_row())
        row[_SUM] += took_s
        row[_BUCKETS + bisect_left(BOUNDS_S, took_s)] += 1

    def _timed(self, name: str, handler: Handler) -> Handler:
        clock, bounds_s, rows = time.perf_counter, BOUNDS_S, self._of(name, _OK)

        def call(request: bytes) -> bytes:
            thread = get_ident()
            row = rows.get(thread)
            if row is None:
                row = rows[thread] = _new_row()
            row[_RUNNING] = 1
            started_s = clock()
            try:
                response = handler(request)
            except BaseException as error:
                row[_RUNNING] = 0
                self._failed(name, error, clock() - started_s)
                raise
            took_s = clock() - started_s
            row[_RUNNING] = 0
            row[_SUM] += took_s
            # Nearly every call is for the first bucket, and bisecting is slower than seeing that.
            fast = took_s <= bounds_s[0]
            row[_BUCKETS if fast else _BUCKETS + bisect_left(bounds_s, took_s)] += 1
            return response

        return call


def _new_row() -> _Row:
    return [0] * (_BUCKETS + len(BOUNDS_S) + 1)
