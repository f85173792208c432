"""Blocking calls in threads with deadlines, and turns for those to the hardware."""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

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
        return await self.run(name, deadline_s, lambda: function(*args, **kwargs), lambda: 0)

    async def run(
        self, name: str, deadline_s: float, function: Callable[[], _T], done: Callable[[], int]
    ) -> _T:
        """As `call`; while `done` grows the deadline restarts: a step may take up to two."""
        if self.hanging:
            raise HalHung(
                f"{name} was not tried: an earlier call still hangs in the driver", _REMEDY
            )
        self._hung = None
        future: Future[_T] = Future()
        done_before = done()
        self._submit(lambda: _run(future, function))
        result = asyncio.wrap_future(future)
        # A cancelled caller never retrieves the exception, which asyncio would log.
        result.add_done_callback(lambda done: done.cancelled() or done.exception())
        while True:
            try:
                # Not wait_for: in Python 3.11 it loses a cancellation that meets the result.
                async with asyncio.timeout(deadline_s):
                    return await asyncio.shield(result)
            except TimeoutError:
                if future.done():
                    return future.result()
            if (done_now := done()) == done_before:
                self._hung = future  # type: ignore[assignment] # only done() is used
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


MAX_STUCK_THREADS = 64
"""More GPUs than a node has; the bound is for one whose driver hangs again and again."""


class HalQueries:
    """One call to the hardware at a time; event loop only."""

    def __init__(self) -> None:
        self._thread = HalThread("hal-query")
        self._stuck: dict[str, HalThread] = {}
        self._turn = asyncio.Lock()
        self.open = False
        """True while the driver is open: only then may others than the monitor call."""

    async def call(
        self, deadline_s: float, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Call about the node, when it is its turn; raises `HalHung` as `HalThread.call`."""
        async with self._turn:
            return await self._thread.call(deadline_s, function, *args, **kwargs)

    async def call_gpus(
        self, uuids: Iterable[str], deadline_s: float, function: Callable[[str], _T]
    ) -> dict[str, _T | HalError]:
        """Call for each GPU, in one turn; returns the result or the error by UUID.

        If a call hangs, its GPU alone gets no further call until it returned, and `HalHung` as the
        error. All calls are one job of the thread: a job costs more than most calls.
        """
        async with self._turn:
            results: dict[str, _T | HalError] = {}
            left = [uuid for uuid in dict.fromkeys(uuids) if self._may_call(uuid, results)]
            while left:
                batch = _Batch(left, function)
                try:
                    await self._thread.run(
                        "call", deadline_s, batch.run, partial(len, batch.results)
                    )
                except HalHung as hung:
                    batch.given_up = True
                    # Unless the call returned at this very moment.
                    if self._thread.hanging:
                        uuid = next(uuid for uuid in left if uuid not in batch.results)
                        results[uuid] = hung
                        self._set_aside(uuid)
                results.update(batch.results)
                left = [uuid for uuid in left if uuid not in results]
            return results

    def _may_call(self, uuid: str, results: dict[str, _T | HalError]) -> bool:
        stuck = self._stuck.get(uuid)
        if stuck is None:
            return True
        if stuck.hanging:
            results[uuid] = HalHung(f"an earlier call about GPU {uuid} still hangs in the driver")
            return False
        self._stuck.pop(uuid).close()
        return True

    def _set_aside(self, uuid: str) -> None:
        """Give the hung thread to this GPU, and call for the others in a new one.

        One hang too many keeps the thread, so that no more threads are lost: all further calls
        fail until it ends.
        """
        if len(self._stuck) < MAX_STUCK_THREADS:
            self._stuck[uuid] = self._thread
            self._thread = HalThread("hal-query")

    def close(self) -> None:
        for thread in (self._thread, *self._stuck.values()):
            thread.close()
        self._stuck.clear()


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
