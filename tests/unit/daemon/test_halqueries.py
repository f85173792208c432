"""Questions to the hardware take turns; one that hangs costs its own GPU alone."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from gpuplugin.daemon.calls import HalQueries
from hal import HalHung, UnknownGpu

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
        names = [f"GPU-{n}" for n in range(8)]
        *answers, node = await asyncio.gather(
            *(queries.call_gpus(names, LONG_S, driver.ask) for _ in range(3)),
            queries.call(LONG_S, driver.ask, "node"),
        )
        assert answers == [{name: name for name in names}] * 3
        assert node == "node"
        queries.close()

    run(main())
    assert driver.most_busy == 1


def test_a_gpu_is_asked_once_though_it_is_named_twice(driver: Driver) -> None:
    async def main() -> None:
        queries = HalQueries()
        asked: list[str] = []
        answers = await queries.call_gpus(["GPU-0", "GPU-0"], LONG_S, asked.append)
        assert answers == {"GPU-0": None}
        assert asked == ["GPU-0"]
        queries.close()

    run(main())


def test_a_gpu_that_fails_hides_no_other() -> None:
    def ask(uuid: str) -> str:
        if uuid == "GPU-1":
            raise UnknownGpu(uuid)
        return uuid

    async def main() -> None:
        queries = HalQueries()
        answers = await queries.call_gpus(["GPU-0", "GPU-1", "GPU-2"], LONG_S, ask)
        assert isinstance(answers.pop("GPU-1"), UnknownGpu)
        assert answers == {"GPU-0": "GPU-0", "GPU-2": "GPU-2"}
        queries.close()

    run(main())


def test_an_error_in_the_program_is_no_answer() -> None:
    def ask(uuid: str) -> str:
        raise ZeroDivisionError(uuid)

    async def main() -> None:
        queries = HalQueries()
        with pytest.raises(ZeroDivisionError):
            await queries.call_gpus(["GPU-0"], LONG_S, ask)
        queries.close()

    run(main())


def test_a_gpu_that_hangs_is_not_asked_again_and_the_others_are(driver: Driver) -> None:
    async def main() -> None:
        queries = HalQueries()
        driver.stuck["GPU-1"] = threading.Event()
        everyone = ["GPU-0", "GPU-1", "GPU-2"]
        for words in ("did not return", "still hangs"):
            answers = await queries.call_gpus(everyone, SOON_S, driver.ask)
            hung = answers.pop("GPU-1")
            assert isinstance(hung, HalHung)
            assert words in str(hung)
            assert answers == {"GPU-0": "GPU-0", "GPU-2": "GPU-2"}
        driver.stuck.pop("GPU-1").set()
        for _ in range(1000):
            if (await queries.call_gpus(["GPU-1"], LONG_S, driver.ask)) == {"GPU-1": "GPU-1"}:
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail("it is never asked again")
        queries.close()

    run(main())


def test_several_that_hang_hide_no_other(driver: Driver) -> None:
    async def main() -> None:
        queries = HalQueries()
        everyone = [f"GPU-{n}" for n in range(6)]
        stuck = {"GPU-0", "GPU-3", "GPU-5"}
        driver.stuck = {uuid: threading.Event() for uuid in stuck}
        answers = await queries.call_gpus(everyone, SOON_S, driver.ask)
        assert {uuid for uuid, one in answers.items() if isinstance(one, HalHung)} == stuck
        assert {one for one in answers.values() if isinstance(one, str)} == set(everyone) - stuck
        queries.close()

    run(main())


def test_slow_answers_are_no_hang() -> None:
    """The deadline is for one GPU, not for all of them."""
    deadline_s, everyone = 0.5, [f"GPU-{n}" for n in range(4)]

    def ask(uuid: str) -> str:
        threading.Event().wait(deadline_s * 0.4)
        return uuid

    async def main() -> None:
        queries = HalQueries()
        answers = await queries.call_gpus(everyone, deadline_s, ask)
        assert answers == {uuid: uuid for uuid in everyone}
        queries.close()

    run(main())


def test_a_question_whose_turn_comes_late_has_its_whole_deadline(driver: Driver) -> None:
    async def main() -> None:
        queries = HalQueries()
        driver.stuck["GPU-1"] = threading.Event()
        hung = asyncio.create_task(queries.call_gpus(["GPU-1"], 10 * SOON_S, driver.ask))
        await asyncio.sleep(0)
        answers = await queries.call_gpus(["GPU-0"], 5 * SOON_S, driver.ask)
        assert answers == {"GPU-0": "GPU-0"}
        assert isinstance((await hung)["GPU-1"], HalHung)
        queries.close()

    run(main())
