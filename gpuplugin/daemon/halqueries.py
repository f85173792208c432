"""Questions to the hardware, one after the other; a GPU whose answer hangs is not asked again.

The backend takes one question at a time beside the waiting for events. Whoever asks (the monitor,
the sampler) shares this turn, and the threads in which calls hang.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from gpuplugin.daemon.halthread import HalHung, HalThread

if TYPE_CHECKING:
    from collections.abc import Callable

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

    async def ask_gpu(self, uuid: str, deadline_s: float, function: Callable[[str], _T]) -> _T:
        """Ask about one GPU; if the call hangs, that GPU alone is not asked until it returned.

        Raises:
            HalHung: no answer in time, or an earlier question about this GPU still hangs.
        """
        async with self._turn:
            stuck = self._stuck.get(uuid)
            if stuck is not None and stuck.hanging:
                raise HalHung(f"an earlier call about GPU {uuid} still hangs in the driver")
            if stuck is not None:
                self._stuck.pop(uuid).close()
            try:
                return await self._thread.call(deadline_s, function, uuid)
            except HalHung:
                if len(self._stuck) < MAX_STUCK_THREADS:
                    # The hang belongs to this GPU: the others are asked in another thread.
                    self._stuck[uuid] = self._thread
                    self._thread = HalThread("hal-query")
                raise

    def close(self) -> None:
        """Let the threads end; nothing waits for one that hangs."""
        for thread in (self._thread, *self._stuck.values()):
            thread.close()
        self._stuck.clear()
