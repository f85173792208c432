"""The daemon stops when it is told to, whatever it does at that moment."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from gpuplugin.daemon.calls import HalThread
from tests.component.fakedriver import FakeDriver
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from tests.component.conftest import StartPlugin
    from tests.component.running import Hardware


@pytest.mark.parametrize("turns", range(8))
def test_a_cancellation_is_not_lost_when_the_hardware_answers_at_that_moment(turns: int) -> None:
    """`turns` places the cancellation between the answer and the waiting task's next step."""

    async def scenario() -> bool:
        thread = HalThread("under-test")
        answered = threading.Event()
        try:
            task = asyncio.create_task(thread.call(DEADLINE_S, answered.set))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            answered.wait(DEADLINE_S)
            for _ in range(turns):
                await asyncio.sleep(0)
            if task.done():
                return True  # too late to be cancelled: nothing to lose
            task.cancel()
            await asyncio.wait([task])
            return task.cancelled()
        finally:
            thread.close()

    assert asyncio.run(scenario())


def test_stop_while_the_driver_hangs(start_plugin: StartPlugin) -> None:
    driver = FakeDriver()
    plugin = start_plugin(driver)
    eventually(plugin.sockets)
    driver.hang()
    try:
        assert driver.waiting.wait(DEADLINE_S)
        plugin.stop()
        assert plugin.sockets() == ()
        assert plugin.failure is None
    finally:
        driver.release()


@pytest.mark.parametrize("moment", ["at once", "with a socket", "with probes"])
def test_stop_at_any_moment_of_the_start(
    hardware: Hardware, start_plugin: StartPlugin, moment: str
) -> None:
    plugin = start_plugin(hardware.backend)
    if moment == "with a socket":
        eventually(plugin.sockets)
    elif moment == "with probes":
        eventually(lambda: hardware.backend.probes)
    plugin.stop()
    assert plugin.sockets() == ()
    assert plugin.failure is None
