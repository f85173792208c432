"""What is counted of the calls of a service: codes, buckets, seconds, and those that run."""

from __future__ import annotations

import time
from collections import deque
from threading import Thread

import pytest

from gpuplugin.rpc import RpcCode, RpcError, Service
from gpuplugin.rpc.callstats import BOUNDS_S, CallStats

TIMES = ((0.0, 0), (50e-6, 0), (60e-6, 1), (100e-6, 1), (1.0, 10), (2.0, 11))
"""Seconds that a call takes, and its bucket."""


def answer(request: bytes) -> bytes:
    if request == b"refuse":
        raise RpcError(RpcCode.INVALID_ARGUMENT, "no")
    if request == b"fail":
        raise ValueError("broken")
    return request


@pytest.fixture
def times_s(monkeypatch: pytest.MonkeyPatch) -> deque[float]:
    """What the clock says, call by call."""
    times: deque[float] = deque()
    monkeypatch.setattr(time, "perf_counter", times.popleft)
    return times


def counted(stats: CallStats) -> dict[str, tuple[dict[int, int], float]]:
    """By code: calls by bucket, and seconds."""
    assert {len(one.by_bucket) for one in stats.calls()} == {len(BOUNDS_S) + 1}
    return {
        one.code: (
            {bucket: count for bucket, count in enumerate(one.by_bucket) if count},
            one.seconds,
        )
        for one in stats.calls()
    }


@pytest.mark.parametrize(("took_s", "bucket"), TIMES)
@pytest.mark.parametrize(
    ("request_", "code"),
    [(b"hello", "OK"), (b"refuse", "INVALID_ARGUMENT"), (b"fail", "UNKNOWN")],
)
def test_a_call_is_counted_with_its_code_and_its_time(
    times_s: deque[float], request_: bytes, code: str, took_s: float, bucket: int
) -> None:
    stats = CallStats()
    call = stats.wrap(Service("test.Counted", {"Call": answer}, {})).unary["Call"]
    times_s.extend((0.0, took_s) * 2)
    for _ in range(2):
        try:
            call(request_)
        except (RpcError, ValueError):
            assert code != "OK"
    found = counted(stats)
    assert found.pop(code) == ({bucket: 2}, 2 * took_s)
    assert set(found) == {"OK", "INVALID_ARGUMENT"} - {code}
    assert all(one == ({}, 0) for one in found.values())
    assert stats.running() == {"Call": 0}


def test_calls_of_several_threads_are_added_up() -> None:
    stats = CallStats()
    running: list[dict[str, int]] = []

    def look(request: bytes) -> bytes:
        running.append(stats.running())
        return request

    call = stats.wrap(Service("test.Counted", {"Call": look, "Other": answer}, {})).unary["Call"]
    for _ in range(3):
        thread = Thread(target=call, args=(b"",))
        thread.start()
        thread.join()
        call(b"")
    total = {(one.method, one.code): sum(one.by_bucket) for one in stats.calls()}
    assert total["Call", "OK"] == 6
    assert total["Other", "OK"] == 0
    assert running == [{"Call": 1, "Other": 0}] * 6


def test_the_bounds_rise() -> None:
    assert sorted({*BOUNDS_S}) == [*BOUNDS_S]
    assert BOUNDS_S[0] > 0
