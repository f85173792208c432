"""Blocking hardware calls in a thread of their own."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from gpuplugin.daemon.calls import HalThread
from hal import GpuLost, HalError, HalHung

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG_S = 30.0
"""Never reached: a call that returns is waited for."""

SHORT_S = 0.02
"""Always reached: the call waits for the test."""


@pytest.fixture
def thread() -> Iterator[HalThread]:
    thread = HalThread("test")
    yield thread
    thread.close()


class Gate:
    """A call that hangs until it is opened, and tells when it has started and ended."""

    def __init__(self) -> None:
        self.started, self.opened = threading.Event(), threading.Event()

    def hang(self) -> str:
        self.started.set()
        assert self.opened.wait(LONG_S)
        return "late"


def test_a_result_is_handed_over(thread: HalThread) -> None:
    def add(one: int, *, two: int) -> int:
        return one + two

    assert asyncio.run(thread.call(LONG_S, add, 1, two=2)) == 3


def test_calls_run_in_one_thread_that_is_not_the_loops(thread: HalThread) -> None:
    async def main() -> list[threading.Thread]:
        return [await thread.call(LONG_S, threading.current_thread) for _ in range(3)]

    first, *others = asyncio.run(main())

    assert all(one is first for one in others)
    assert first is not threading.current_thread()
    assert first.daemon, "a hung call must not hold the process"


@pytest.mark.parametrize(
    "error", [GpuLost("GPU-a"), ZeroDivisionError("x"), TimeoutError("the driver's own")], ids=repr
)
def test_an_error_is_handed_over_as_it_is(thread: HalThread, error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        asyncio.run(thread.call(LONG_S, fail))
    assert (type(caught.value), caught.value.args) == (type(error), error.args)


def test_a_call_works_once_there_can_be_threads_again(
    thread: HalThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="new thread"):
            asyncio.run(thread.call(LONG_S, str, 7))

    assert asyncio.run(thread.call(LONG_S, str, 7)) == "7"


def test_a_call_works_after_one_that_failed(thread: HalThread) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    async def main() -> str:
        with pytest.raises(ZeroDivisionError):
            await thread.call(LONG_S, fail)
        return await thread.call(LONG_S, str, 7)

    assert asyncio.run(main()) == "7"


def test_a_call_past_its_deadline_is_hung_and_named(thread: HalThread) -> None:
    gate = Gate()
    try:
        with pytest.raises(HalHung, match=r"hang did not return within 0\.02 s") as caught:
            asyncio.run(thread.call(SHORT_S, gate.hang))
    finally:
        gate.opened.set()
    assert isinstance(caught.value, HalError)
    assert caught.value.remedy


def test_while_a_call_hangs_others_are_refused_at_once_and_never_run(thread: HalThread) -> None:
    gate = Gate()
    ran: list[str] = []

    async def main() -> str:
        with pytest.raises(HalHung):
            await thread.call(SHORT_S, gate.hang)
        for _ in range(2):
            with pytest.raises(HalHung, match="an earlier call still hangs"):
                await thread.call(1.0, ran.append, "refused")
        gate.opened.set()
        return await until_it_works()

    async def until_it_works() -> str:
        """The hung call ends in its thread; how soon the loop sees it is not ours to say."""
        while True:
            try:
                return await thread.call(LONG_S, str, "works")
            except HalHung:
                await asyncio.sleep(0)

    async def within_deadline() -> str:
        return await asyncio.wait_for(main(), LONG_S)

    assert asyncio.run(within_deadline()) == "works"
    assert ran == []


def test_the_loop_turns_while_a_call_blocks(thread: HalThread) -> None:
    gate = Gate()

    async def main() -> str:
        call = asyncio.create_task(thread.call(LONG_S, gate.hang))
        assert await asyncio.to_thread(gate.started.wait, LONG_S)
        assert not call.done()
        gate.opened.set()
        return await call

    assert asyncio.run(main()) == "late"


def test_a_cancelled_wait_leaves_the_thread_usable(thread: HalThread) -> None:
    gate = Gate()

    async def main() -> str:
        call = asyncio.create_task(thread.call(LONG_S, gate.hang))
        assert await asyncio.to_thread(gate.started.wait, LONG_S)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        gate.opened.set()
        return await thread.call(LONG_S, str, "works")

    assert asyncio.run(main()) == "works"


def test_closing_ends_the_thread_and_may_happen_unused() -> None:
    HalThread("never used").close()
    thread = HalThread("used")
    worker = asyncio.run(thread.call(LONG_S, threading.current_thread))

    thread.close()
    worker.join(LONG_S)

    assert not worker.is_alive()
