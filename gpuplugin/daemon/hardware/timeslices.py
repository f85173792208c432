"""Sets the time slices of GPUs: those of the configuration, and those that claims ask for.

Event loop only, but for `claim`. A GPU whose time slice cannot be set is used as it is: that is
told, and is no reason to be not ready.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from gpuplugin.core.timeslices import TimeSlices, usual_time_slices
from gpuplugin.daemon.logs import log_fact
from hal import HalError, HalHung, NotSupported, TimeSliceLevel

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from gpuplugin.daemon.calls import HalQueries
    from gpuplugin.daemon.node import Node
    from gpuplugin.daemon.status import StatusBoard
    from hal import Backend

COMPONENT: Final = "time-slices"
CALL_DEADLINE_S = 35.0
"""More than the driver's program may take, which has a deadline of its own."""
STOP_DEADLINE_S = 10.0
"""For all GPUs together, when the plugin stops."""

log = logging.getLogger(__name__)


class TimeSlicer:
    """The task; `kept_at_stop` leaves what is set when the plugin stops."""

    def __init__(
        self,
        backend: Backend,
        queries: HalQueries,
        node: Node,
        status: StatusBoard,
        *,
        kept_at_stop: bool = False,
    ) -> None:
        self._backend = backend
        self._queries = queries
        self._node = node
        self._status = status
        self._kept_at_stop = kept_at_stop
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Event()
        self._claimed: Mapping[str, TimeSliceLevel] = MappingProxyType({})
        self._slices = TimeSlices()
        self._waiting: list[threading.Event] = []
        node.followers.append(self._turn.set)

    def claim(self, levels: Mapping[str, TimeSliceLevel], wait_s: float) -> dict[str, str]:
        """In a thread: what claims ask for, by GPU, instead of what is usual there.

        Returns when it is set; GPUs for which that failed are in the result, with the reason.
        """
        done = threading.Event()
        self._loop.call_soon_threadsafe(self._take, dict(levels), done)
        if not done.wait(wait_s):
            return dict.fromkeys(levels, f"the driver did not set it within {wait_s:g} s")
        slices = self._slices
        return {
            uuid: slices.refused[uuid][1] if uuid in slices.refused else "the GPU cannot be used"
            for uuid, level in levels.items()
            if slices.in_force.get(uuid) is not level
        }

    def _take(self, levels: Mapping[str, TimeSliceLevel], done: threading.Event) -> None:
        self._claimed = MappingProxyType(dict(levels))
        # What somebody waits for is tried, whatever came of it before.
        refused = {uuid: one for uuid, one in self._slices.refused.items() if uuid not in levels}
        self._slices = TimeSlices(self._slices.in_force, MappingProxyType(refused))
        self._waiting.append(done)
        self._turn.set()

    def reopened(self) -> None:
        """The driver was opened: it may have been loaded anew, without what was set."""
        self._slices = self._slices.uncertain(gpu.uuid for gpu in self._node.view.gpus)
        self._turn.set()

    async def run(self) -> None:
        """Set what is wanted whenever that, or a GPU's health, has changed."""
        while True:
            await self._turn.wait()
            self._turn.clear()
            waiting, self._waiting = self._waiting, []
            view = self._node.view
            usable = {gpu.uuid for gpu in view.gpus if view.board.healthy(gpu.uuid)}
            if not view.board.blind:
                self._slices = self._slices.uncertain(
                    gpu.uuid for gpu in view.gpus if gpu.uuid not in usable
                )
            wanted = self._wanted()
            await self._settle(wanted, usable if self._queries.open else ())
            self._tell(wanted)
            for done in waiting:
                done.set()

    async def stop(self) -> None:
        """Before the driver is closed for good: the default again for all that was set."""
        if self._kept_at_stop or not self._slices.in_force or not self._queries.open:
            return
        try:
            async with asyncio.timeout(STOP_DEADLINE_S):
                await self._settle({}, self._slices.in_force.keys())
        except TimeoutError:
            text = "time slices were not all put back to the default before the plugin stopped"
            log_fact(log, logging.WARNING, "time-slices-left", text)

    def _wanted(self) -> dict[str, TimeSliceLevel]:
        view = self._node.view
        usual = usual_time_slices(view.inventory, view.plan.inventory.sharing.interval)
        return {**usual, **self._claimed}

    async def _settle(self, wanted: Mapping[str, TimeSliceLevel], usable: Collection[str]) -> None:
        """One GPU at a time, so that what else is asked of the driver has its turn in between."""
        listed = {gpu.uuid for gpu in self._node.view.gpus}
        self._slices = self._slices.of_interest(wanted, listed)
        for uuid, level in self._slices.due(wanted, usable).items():

            def set_level(uuid: str, level: TimeSliceLevel = level) -> None:
                self._backend.set_time_slice(uuid, level)

            before = self._slices
            self._slices = before.begun(uuid)
            result = (await self._queries.call_gpus([uuid], CALL_DEADLINE_S, set_level))[uuid]
            name = f"GPU {self._node.view.index(uuid) or uuid}"
            if isinstance(result, HalError):
                reason = str(result)
                if not isinstance(result, HalHung):
                    self._slices = self._slices.ended(uuid, before)
                self._slices = self._slices.after_refusal(uuid, level, reason)
                text = f"the time slice of {name} cannot be {level.name.capitalize()}: {reason}"
                severity = logging.WARNING if isinstance(result, NotSupported) else logging.ERROR
                log_fact(log, severity, "time-slice-refused", text, uuid=uuid)
            else:
                self._slices = self._slices.after_setting(uuid, level, wanted=uuid in wanted)
                text = f"the time slice of {name} is {level.name.capitalize()}"
                log_fact(log, logging.INFO, "time-slice-set", text, uuid=uuid)

    def _tell(self, wanted: Mapping[str, TimeSliceLevel]) -> None:
        if not wanted and not self._slices.in_force:
            self._status.remove(COMPONENT)
            return
        self._status.set(COMPONENT, self._slices.text(wanted, self._node.view.index), ok=True)
