"""Questions to the hardware take turns; one that hangs costs its own GPU alone."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from gpuplugin.daemon.calls import HalQueries
from hal import GpuCalls, HalHung, UnknownGpu

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from concurrent.futures import Future

SOON_S, LONG_S = 0.2, 20.0


class Driver:
    """Answers with the UUID; GPUs in `stuck` hang until they are let go."""

    def __init__(self) -> None:
        self.stuck: dict[str, threading.Event] = {}
        self.busy = 0
        self.most_busy = 0
        self.slow_s = 0.001
        self._lock = threading.Lock()
        self._calls: GpuCalls[str] = GpuCalls()

    def call_lasting_s(self, thread: int) -> float | None:
        return self._calls.lasting_s(thread)

    def give_up(self, thread: int) -> bool:
        return self._calls.give_up(thread)

    def ask(self, uuid: str) -> str:
        with self._calls.about(uuid):
            return self._answer(uuid)

    def ask_all(self) -> list[str]:
        """As a scan: GPUs that hang are left out."""
        found = []
        for uuid in ("GPU-0", "GPU-1", "GPU-2"):
            with suppress(HalHung):
                found.append(self.ask(uuid))
        return found

    def _answer(self, uuid: str) -> str:
        event = self.stuck.get(uuid)
        if event is not None:
            event.wait(LONG_S)
            return uuid
        with self._lock:
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        threading.Event().wait(self.slow_s)
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
        queries = HalQueries(driver)
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
        queries = HalQueries(driver)
        asked: list[str] = []
        answers = await queries.call_gpus(["GPU-0", "GPU-0"], LONG_S, asked.append)
        assert answers == {"GPU-0": None}
        assert asked == ["GPU-0"]
        queries.close()

    run(main())


def test_a_gpu_that_fails_hides_no_other(driver: Driver) -> None:
    def ask(uuid: str) -> str:
        if uuid == "GPU-1":
            raise UnknownGpu(uuid)
        return uuid

    async def main() -> None:
        queries = HalQueries(driver)
        answers = await queries.call_gpus(["GPU-0", "GPU-1", "GPU-2"], LONG_S, ask)
        assert isinstance(answers.pop("GPU-1"), UnknownGpu)
        assert answers == {"GPU-0": "GPU-0", "GPU-2": "GPU-2"}
        queries.close()

    run(main())


def test_an_error_in_the_program_is_no_answer(driver: Driver) -> None:
    def ask(uuid: str) -> str:
        raise ZeroDivisionError(uuid)

    async def main() -> None:
        queries = HalQueries(driver)
        with pytest.raises(ZeroDivisionError):
            await queries.call_gpus(["GPU-0"], LONG_S, ask)
        queries.close()

    run(main())


def test_a_call_that_returns_just_as_it_is_given_up_is_an_answer(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is there, and the thread has not come to say so."""
    driver.stuck["GPU-0"] = threading.Event()
    answered, going_on = threading.Event(), threading.Event()

    def end_late(future: Future[object], function: Callable[[], object]) -> None:
        result = function()
        answered.set()
        assert going_on.wait(LONG_S)
        future.set_result(result)

    def lasting_s(_thread: int) -> float:
        driver.stuck["GPU-0"].set()
        assert answered.wait(LONG_S)
        return LONG_S

    async def main() -> None:
        queries = HalQueries(driver)
        answers = await queries.call_gpus(["GPU-0"], SOON_S, driver.ask)
        assert answers == {"GPU-0": "GPU-0"}
        queries.close()

    monkeypatch.setattr("gpuplugin.daemon.calls._run", end_late)
    monkeypatch.setattr(driver, "call_lasting_s", lasting_s)
    try:
        run(main())
    finally:
        going_on.set()


def test_a_gpu_that_hangs_is_not_asked_again_and_the_others_are(driver: Driver) -> None:
    async def main() -> None:
        queries = HalQueries(driver)
        driver.stuck["GPU-1"] = threading.Event()
        everyone = ["GPU-0", "GPU-1", "GPU-2"]
        for words in ("did not return", "an earlier call about GPU GPU-1 has not returned"):
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
        queries = HalQueries(driver)
        everyone = [f"GPU-{n}" for n in range(6)]
        stuck = {"GPU-0", "GPU-3", "GPU-5"}
        driver.stuck = {uuid: threading.Event() for uuid in stuck}
        answers = await queries.call_gpus(everyone, SOON_S, driver.ask)
        assert {uuid for uuid, one in answers.items() if isinstance(one, HalHung)} == stuck
        assert {one for one in answers.values() if isinstance(one, str)} == set(everyone) - stuck
        queries.close()

    run(main())


def test_slow_answers_are_no_hang(driver: Driver) -> None:
    """The deadline is for one GPU, not for all of them."""
    everyone = ["GPU-0", "GPU-1", "GPU-2"]
    deadline_s = 0.5
    driver.slow_s = deadline_s * 0.4

    async def main() -> None:
        queries = HalQueries(driver)
        answers = await queries.call_gpus(everyone, deadline_s, driver.ask)
        assert answers == {uuid: uuid for uuid in everyone}
        assert await queries.call(deadline_s, driver.ask_all) == everyone
        queries.close()

    run(main())


def test_a_question_whose_turn_comes_late_has_its_whole_deadline(driver: Driver) -> None:
    async def main() -> None:
        queries = HalQueries(driver)
        driver.stuck["GPU-1"] = threading.Event()
        hung = asyncio.create_task(queries.call_gpus(["GPU-1"], 3 * SOON_S, driver.ask))
        await asyncio.sleep(0)
        answers = await queries.call_gpus(["GPU-0"], 2 * SOON_S, driver.ask)
        assert answers == {"GPU-0": "GPU-0"}
        assert isinstance((await hung)["GPU-1"], HalHung)
        queries.close()

    run(main())


def test_a_call_about_all_gpus_is_made_again_without_the_one_that_hangs(driver: Driver) -> None:
    async def main() -> None:
        queries = HalQueries(driver)
        driver.stuck["GPU-1"] = threading.Event()
        assert await queries.call(SOON_S, driver.ask_all) == ["GPU-0", "GPU-2"]
        # Another GPU later: the first still hangs.
        driver.stuck["GPU-0"] = threading.Event()
        assert await queries.call(SOON_S, driver.ask_all) == ["GPU-2"]
        assert (await queries.call_gpus(["GPU-2"], SOON_S, driver.ask)) == {"GPU-2": "GPU-2"}
        queries.close()

    run(main())


def test_a_driver_that_hangs_is_no_gpu_that_hangs(driver: Driver) -> None:
    released = threading.Event()

    async def main() -> None:
        queries = HalQueries(driver)
        for words in ("did not return", "still hangs"):
            with pytest.raises(HalHung, match=words):
                await queries.call(SOON_S, released.wait, LONG_S)
        queries.close()

    try:
        run(main())
    finally:
        released.set()
