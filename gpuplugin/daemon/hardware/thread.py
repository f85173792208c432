"""A thread that makes blocking hardware calls on behalf of the event loop, with a deadline.

A call that hangs keeps its thread, never the loop. While it hangs, later calls on the same thread
are refused at once rather than queued behind it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from hal import HalHung

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_T = TypeVar("_T")

_REMEDY = "Look for a stuck driver in dmesg; a hung GPU often needs a reboot"


class HalThread:
    """One worker thread, made on first use; a daemon thread, so a hung call cannot hold exit."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._hung: Future[object] | None = None

    async def call(
        self, deadline_s: float, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Run `function` in the thread and wait for its result, at most `deadline_s`.

        Raises:
            HalHung: it did not return in time, or an earlier call still has not returned.
        """
        name = getattr(function, "__name__", "call")
        return await self._call(name, deadline_s, lambda: function(*args, **kwargs), lambda: 0)

    async def call_steps(
        self, deadline_s: float, steps: Callable[[], _T], done: Callable[[], int]
    ) -> _T:
        """As `call`, for a function of many steps: the deadline counts anew while `done` grows.

        A step may so take up to twice `deadline_s` before it counts as hanging.

        Raises:
            HalHung: as for `call`.
        """
        return await self._call("call", deadline_s, steps, done)

    async def _call(
        self, name: str, deadline_s: float, function: Callable[[], _T], done: Callable[[], int]
    ) -> _T:
        if self.hanging:
            raise HalHung(
                f"{name} was not tried: an earlier call still hangs in the driver", _REMEDY
            )
        self._hung = None
        future: Future[_T] = Future()
        done_before = done()
        self._submit(lambda: _run(future, function))
        answer = asyncio.wrap_future(future)
        # A caller that was cancelled never asks for the failure; it is no news to anybody else.
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        while True:
            try:
                # Not wait_for: in Python 3.11 it loses a cancellation that meets the answer.
                async with asyncio.timeout(deadline_s):
                    return await asyncio.shield(answer)
            except TimeoutError:
                if future.done():
                    return future.result()
            if (done_now := done()) == done_before:
                self._hung = future  # type: ignore[assignment] # only whether it is done is asked
                raise HalHung(f"{name} did not return within {deadline_s:g} s", _REMEDY)
            done_before = done_now

    @property
    def hanging(self) -> bool:
        """True while a call that missed its deadline has not returned."""
        return self._hung is not None and not self._hung.done()

    def close(self) -> None:
        """Let the thread end after the running call; nothing waits for it, another may follow."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread = None
            self._hung = None
            self._jobs = queue.SimpleQueue()

    def _submit(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=_work, args=(self._jobs,), name=self._name, daemon=True
            )
            self._thread.start()
        self._jobs.put(job)


def _work(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()


def _run(future: Future[_T], function: Callable[[], _T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except Exception as error:  # noqa: BLE001 - handed to the caller, whatever it is
        future.set_exception(error)
    else:
        future.set_result(result)
