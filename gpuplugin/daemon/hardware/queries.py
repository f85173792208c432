"""Questions to the hardware, one after the other; a GPU whose answer hangs is not asked again.

The backend takes one question at a time beside the waiting for events. Whoever asks (the monitor,
the sampler) shares this turn, and the threads in which calls hang.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

from gpuplugin.daemon.hardware.thread import HalThread
from hal import HalError, HalHung

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_P = ParamSpec("_P")
_T = TypeVar("_T")

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
        """Ask about the node; the deadline counts from when it is this question's turn.

        Raises:
            HalHung: no answer in time, or an earlier question about the node still hangs.
        """
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
        """Let the threads end; nothing waits for one that hangs."""
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
