"""Blocking calls in threads with deadlines, and turns for those to the hardware.

A GPU that hangs costs a thread and its own health: the others are called in a new thread.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Generic, ParamSpec, Protocol, TypeVar

from hal import HalError, HalHung

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_P = ParamSpec("_P")
_T = TypeVar("_T")

_REMEDY = "Check dmesg for a stuck driver; a hung GPU often needs a reboot"


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
        """Run `function` in the thread; raises `HalHung` after `deadline_s`."""
        name = getattr(function, "__name__", "call")
        return await self.run(name, deadline_s, partial(function, *args, **kwargs))

    async def run(
        self,
        name: str,
        deadline_s: float,
        function: Callable[[], _T],
        lasting_s: Callable[[int], float | None] | None = None,
    ) -> _T:
        """As `call`; with `lasting_s` the deadline is for each of many steps.

        `lasting_s` returns how long the present step of the thread has lasted, None between steps.
        """
        if self.hanging:
            raise HalHung(
                f"{name} was not tried: an earlier call still hangs in the driver", _REMEDY
            )
        self._hung = None
        future: Future[_T] = Future()
        self._submit(lambda: _run(future, function))
        result = asyncio.wrap_future(future)
        # A cancelled caller never retrieves the exception, which asyncio would log.
        result.add_done_callback(lambda done: done.cancelled() or done.exception())
        wait_s, between_steps = deadline_s, False
        while True:
            try:
                # Not wait_for: in Python 3.11 it loses a cancellation that meets the result.
                async with asyncio.timeout(wait_s):
                    return await asyncio.shield(result)
            except TimeoutError:
                if future.done():
                    return future.result()
            lasted_s = deadline_s if lasting_s is None else lasting_s(self.ident)
            if lasted_s is None and not between_steps:
                wait_s, between_steps = deadline_s / 4, True
            elif lasted_s is None or lasted_s >= deadline_s * 0.9:
                self._hung = future  # type: ignore[assignment] # only done() is used
                raise HalHung(f"{name} did not return within {deadline_s:g} s", _REMEDY)
            else:
                wait_s, between_steps = deadline_s - lasted_s, False

    @property
    def ident(self) -> int:
        """The identifier of the thread; 0 before its first call."""
        return (self._thread and self._thread.ident) or 0

    @property
    def hanging(self) -> bool:
        """True while a call that missed its deadline has not returned."""
        return self._hung is not None and not self._hung.done()

    def retire(self) -> None:
        """Let the thread end after the running call; nothing waits for it."""
        if self._thread is not None:
            self._jobs.put(None)

    def close(self) -> None:
        """As `retire`; another thread may follow."""
        self.retire()
        if self._thread is not None:
            self._thread = None
            self._hung = None
            self._jobs = queue.SimpleQueue()

    def _submit(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            thread = threading.Thread(
                target=_work, args=(self._jobs,), name=self._name, daemon=True
            )
            thread.start()  # fails where there can be no more threads; then it is tried again
            self._thread = thread
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


MAX_STUCK_THREADS = 64
"""More GPUs than a node has; the bound is for one whose driver hangs again and again."""


class Driver(Protocol):
    """The part of `hal.Backend` that is about GPUs that hang."""

    def call_lasting_s(self, thread: int) -> float | None: ...
    def give_up(self, thread: int) -> bool: ...


class HalLane:
    """Calls to the hardware, one after the other, in a thread that is replaced if a GPU hangs."""

    def __init__(self, name: str, driver: Driver) -> None:
        self._name = name
        self._driver = driver
        self.thread = HalThread(name)
        self._stuck: list[HalThread] = []

    async def call(
        self, deadline_s: float, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Run `function` in the thread; raises `HalHung` if it does not return.

        `deadline_s` is for each GPU that the call is about. If one of them hangs the call is made
        once more, and the driver leaves that GPU out.
        """
        name = getattr(function, "__name__", "call")
        run = partial(function, *args, **kwargs)
        try:
            return await self.run(name, deadline_s, run)
        except HalHung:
            if not self.replace_thread():
                raise
        return await self.run(name, deadline_s, run)

    async def run(self, name: str, deadline_s: float, function: Callable[[], _T]) -> _T:
        """As `call`, without a second try."""
        return await self.thread.run(name, deadline_s, function, self._driver.call_lasting_s)

    def replace_thread(self) -> bool:
        """Leave the thread to a GPU that hangs, and take a new one; False if no GPU does.

        One hang too many keeps the thread, so that no more threads are lost: all further calls
        fail until it returns.
        """
        self._stuck = [thread for thread in self._stuck if thread.hanging]
        if len(self._stuck) >= MAX_STUCK_THREADS or not self.thread.hanging:
            return False
        if not self._driver.give_up(self.thread.ident):
            return False
        self._stuck.append(self.thread)
        self.thread.retire()
        self.thread = HalThread(self._name)
        return True

    def close(self) -> None:
        self.thread.close()


class HalQueries:
    """One call to the hardware at a time; event loop only."""

    def __init__(self, driver: Driver) -> None:
        self._lane = HalLane("hal-query", driver)
        self._turn = asyncio.Lock()
        self.open = False
        """True while the driver is open: only then may others than the monitor call."""

    async def call(
        self, deadline_s: float, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Call about the node, when it is its turn; raises `HalHung` as `HalLane.call`."""
        async with self._turn:
            return await self._lane.call(deadline_s, function, *args, **kwargs)

    async def call_gpus(
        self, uuids: Iterable[str], deadline_s: float, function: Callable[[str], _T]
    ) -> dict[str, _T | HalError]:
        """Call for each GPU, in one turn; returns the result or the error by UUID.

        If a call hangs, its GPU alone has `HalHung` as the error. All calls are one job of the
        thread: a job costs more than most calls.
        """
        async with self._turn:
            lane, results = self._lane, dict[str, _T | HalError]()
            left = list(dict.fromkeys(uuids))
            while left:
                batch = _Batch(left, function)
                try:
                    await lane.run("call", deadline_s, batch.run)
                except HalHung as hung:
                    batch.given_up = True
                    uuid = next((one for one in left if one not in batch.results), None)
                    # Unless the call returned at this very moment.
                    if uuid is not None and lane.thread.hanging:
                        results[uuid] = hung
                        lane.replace_thread()
                results.update(batch.results)
                left = [uuid for uuid in left if uuid not in results]
            return results

    def close(self) -> None:
        self._lane.close()


@dataclass(slots=True)
class _Batch(Generic[_T]):
    """Calls for GPUs, one after the other; `results` grows while `run` is in its thread."""

    uuids: Sequence[str]
    function: Callable[[str], _T]
    results: dict[str, _T | HalError] = field(default_factory=dict)
    given_up: bool = False

    def run(self) -> None:
        for uuid in self.uuids:
            if self.given_up:
                return
            try:
                self.results[uuid] = self.function(uuid)
            except HalError as error:
                self.results[uuid] = error
