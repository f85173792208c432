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


MAX_STUCK_THREADS = 64
"""More GPUs than a node has; the bound is for one whose driver hangs again and again."""


class HalQueries:
    """A turn for all who ask; event loop only."""

    def __init__(self) -> None:
        self._thread = HalThread("hal-query")
        self._stuck: dict[str, HalThread] = {}
        self._turn = asyncio.Lock()
        self.open = False
        """True between the opening of the driver and its closing: who is not the monitor asks."""

    async def ask(
        self, deadline_s: float, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Call about the node, when it is its turn; raises `HalHung` as `HalThread.call`."""
        async with self._turn:
            return await self._thread.call(deadline_s, function, *args, **kwargs)

    async def ask_gpus(
        self, uuids: Iterable[str], deadline_s: float, function: Callable[[str], _T]
    ) -> dict[str, _T | HalError]:
        """Ask about each GPU, in one turn; by UUID its answer, or why there is none.

        If a call hangs, that GPU alone is not asked again until it returned, and has `HalHung` for
        an answer. All are asked in one visit to the thread: a visit costs more than most answers.
        """
        async with self._turn:
            answers: dict[str, _T | HalError] = {}
            left = [uuid for uuid in dict.fromkeys(uuids) if self._may_ask(uuid, answers)]
            while left:
                asked = _Round(left, function)
                try:
                    await self._thread.call_steps(
                        deadline_s, asked.run, partial(len, asked.answers)
                    )
                except HalHung as hung:
                    asked.given_up = True
                    # Unless it went on at this very moment: then there is nobody to blame.
                    if self._thread.hanging:
                        uuid = next(uuid for uuid in left if uuid not in asked.answers)
                        answers[uuid] = hung
                        self._set_aside(uuid)
                answers.update(asked.answers)
                left = [uuid for uuid in left if uuid not in answers]
            return answers

    def _may_ask(self, uuid: str, answers: dict[str, _T | HalError]) -> bool:
        stuck = self._stuck.get(uuid)
        if stuck is None:
            return True
        if stuck.hanging:
            answers[uuid] = HalHung(f"an earlier call about GPU {uuid} still hangs in the driver")
            return False
        self._stuck.pop(uuid).close()
        return True

    def _set_aside(self, uuid: str) -> None:
        """The hang belongs to this GPU: the others are asked in another thread.

        One hang too many stays where it is, so that no more threads are lost; all that is asked
        from then on fails until it ends.
        """
        if len(self._stuck) < MAX_STUCK_THREADS:
            self._stuck[uuid] = self._thread
            self._thread = HalThread("hal-query")

    def close(self) -> None:
        for thread in (self._thread, *self._stuck.values()):
            thread.close()
        self._stuck.clear()


@dataclass(slots=True)
class _Round(Generic[_T]):
    """Questions about GPUs, one after the other; `answers` grows while `run` is in its thread."""

    uuids: Sequence[str]
    function: Callable[[str], _T]
    answers: dict[str, _T | HalError] = field(default_factory=dict)
    given_up: bool = False

    def run(self) -> None:
        """Ask, until nobody waits for the answers any more."""
        for uuid in self.uuids:
            if self.given_up:
                return
            try:
                self.answers[uuid] = self.function(uuid)
            except HalError as error:
                self.answers[uuid] = error
