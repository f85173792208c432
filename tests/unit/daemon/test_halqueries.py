"""Questions to the hardware take turns; one that hangs costs its own GPU alone."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from gpuplugin.daemon.halqueries import HalQueries
from gpuplugin.daemon.halthread import HalHung

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

SOON_S, LONG_S = 0.05, 20.0


class Driver:
    """Answers with the UUID; GPUs in `stuck` hang until they are let go."""

    def __init__(self) -> None:
        self.stuck: dict[str, threading.Event] = {}
        self.busy = 0
        self.most_busy = 0
        self._lock = threading.Lock()

    def ask(self, uuid: str) -> str:
        event = self.stuck.get(uuid)
        if event is not None:
            event.wait(LONG_S)
            return uuid
        with self._lock:
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        threading.Event().wait(0.001)
        with self._lock:
            self.busy -= 1
        return uuid


@pytest.fixture
def driver() -> Iterator[Driver]:
    driver = Driver()
    yield driver
    for event in driver.stuck.values():
        event.set()


def run(work: Coroutine[object, object, None]) -> None:
    asyncio.run(work)


def test_questions_of_several_who_ask_are_asked_one_by_one(driver: Driver) -> None:
    async def main() -> None:
        queries = HalQueries()
        names = [f"GPU-{n}" for n in range(20)]
        answers = await asyncio.gather(
            *(queries.ask_gpu(name, LONG_S, driver.ask) for name in names),
            queries.ask(LONG_S, driver.ask, "node"),
        )
        assert answers == [*names, "node"]
        queries.close()

    run(main())
    assert driver.most_busy == 1


def test_a_gpu_that_hangs_is_not_asked_again_and_the_others_are(driver: Driver) -> None:
    async def main() -> None:
        queries = HalQueries()
        driver.stuck["GPU-1"] = threading.Event()
        with pytest.raises(HalHung, match="did not return"):
            await queries.ask_gpu("GPU-1", SOON_S, driver.ask)
        with pytest.raises(HalHung, match="still hangs"):
            await queries.ask_gpu("GPU-1", LONG_S, driver.ask)
        assert await queries.ask_gpu("GPU-0", LONG_S, driver.ask) == "GPU-0"
        driver.stuck.pop("GPU-1").set()
        for _ in range(1000):
            try:
                assert await queries.ask_gpu("GPU-1", LONG_S, driver.ask) == "GPU-1"
            except HalHung:
                await asyncio.sleep(0.01)
                continue
            break
        else:
            pytest.fail("it is never asked again")
        queries.close()

    run(main())


def test_a_question_whose_turn_comes_late_has_its_whole_deadline(driver: Driver) -> None:
    async def main() -> None:
        queries = HalQueries()
        driver.stuck["GPU-1"] = threading.Event()
        hung = asyncio.create_task(queries.ask_gpu("GPU-1", 10 * SOON_S, driver.ask))
        await asyncio.sleep(0)
        assert await queries.ask_gpu("GPU-0", 5 * SOON_S, driver.ask) == "GPU-0"
        with pytest.raises(HalHung):
            await hung
        queries.close()

    run(main())
