"""Time slices whose setting takes a while: what comes meanwhile counts."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from gpuplugin.core.health import HealthPolicy
from gpuplugin.core.injection import InjectionPlan
from gpuplugin.core.inventory import Plan
from gpuplugin.core.nodeview import NodePlan
from gpuplugin.core.sharing import SharedResource, TimeSlicing
from gpuplugin.daemon.calls import HalQueries
from gpuplugin.daemon.hardware.timeslices import TimeSlicer
from gpuplugin.daemon.healthlog import HealthLog
from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.daemon.node import Node
from gpuplugin.daemon.status import StatusBoard
from hal import HalError, Probe, TimeSliceLevel
from tests.component.fakedriver import FakeDriver
from tests.component.waiting import DEADLINE_S, becomes_true

if TYPE_CHECKING:
    from collections.abc import Iterable

LONG = TimeSliceLevel.LONG
PLAN = NodePlan(
    Plan(TimeSlicing(resources=(SharedResource("nvidia.com/gpu", 2),), interval=LONG)),
    InjectionPlan(),
    "distributed",
    HealthPolicy(quiet_period_s=0.0),
)


class Driver(FakeDriver):
    """Sets no time slice on GPUs that are `busy`, and takes its time while `gate` is shut."""

    def __init__(self) -> None:
        super().__init__(2)
        self.one, self.two = (gpu.uuid for gpu in self.listed)
        self.busy = {self.one}
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def set_time_slice(self, uuid: str, level: TimeSliceLevel) -> None:
        assert level is LONG
        self.asked.append(uuid)
        assert self.gate.wait(DEADLINE_S)
        if uuid in self.busy:
            raise HalError("busy")


def test_a_refusal_that_comes_late_does_not_bring_back_another_one() -> None:
    """A claim has just wanted that other GPU tried again."""

    async def main() -> None:
        driver, status = Driver(), StatusBoard()
        node = Node(PLAN, status, HealthLog(Metrics()))
        queries = HalQueries(driver)
        slicer = TimeSlicer(driver, queries, node, status)
        queries.open = True

        async def see(*lost: str) -> None:
            node.updated(driver.listed, probes(driver, lost))
            await becomes_true(lambda: node.view.healthy(driver.two) is not bool(lost))
            await becomes_true(lambda: told[-1] is not bool(lost))

        task = asyncio.create_task(slicer.run())
        told: list[bool] = []
        node.followers.append(lambda: told.append(node.view.healthy(driver.two)))
        await see()
        await becomes_true(lambda: driver.asked == [driver.one, driver.two])

        driver.gate.clear()
        await see(driver.two)  # so it has lost what was set
        node.updated(driver.listed, probes(driver, ()))
        await see()
        await becomes_true(lambda: driver.asked[2:] == [driver.two])
        driver.busy = {driver.two}
        await asyncio.to_thread(slicer.claim, {driver.one: LONG}, 0.0)
        driver.gate.set()
        await becomes_true(lambda: driver.asked[3:] == [driver.one])

        task.cancel()
        await asyncio.wait({task})
        queries.close()
        node.close()

    asyncio.run(main())


def probes(driver: Driver, lost: Iterable[str]) -> dict[str, Probe]:
    return {
        gpu.uuid: Probe.unreachable("1") if gpu.uuid in lost else driver.probe(gpu.uuid)
        for gpu in driver.listed
    }
