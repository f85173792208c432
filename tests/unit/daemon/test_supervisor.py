"""Tasks that are kept running."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.daemon.status import StatusBoard
from gpuplugin.daemon.tasks import Fatal, supervise

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Pauses:
    """Stands in for asyncio.sleep: notes how long, and what the status said meanwhile."""

    def __init__(self, status: StatusBoard) -> None:
        self._status = status
        self.delays: list[float] = []
        self.told: list[dict[str, str]] = []

    async def __call__(self, delay_s: float) -> None:
        self.delays.append(delay_s)
        parts = self._status.readiness().components
        self.told.append({name: part.text for name, part in parts.items() if not part.ok})


@pytest.fixture
def status() -> StatusBoard:
    status = StatusBoard()
    status.set("monitor", "fine", ok=True)
    return status


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch, status: StatusBoard) -> Pauses:
    pauses = Pauses(status)
    monkeypatch.setattr("gpuplugin.daemon.tasks.asyncio.sleep", pauses)
    return pauses


def failing(times: int, error: Exception | None) -> Callable[[], Awaitable[None]]:
    """A task that fails (None: ends) so many times and then ends the daemon."""
    runs = 0

    async def task() -> None:
        nonlocal runs
        runs += 1
        if runs > times:
            raise Fatal("enough")
        if error is not None:
            raise error

    return task


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(ValueError("broken"), "ValueError: broken", id="failed"),
        pytest.param(None, "it ended", id="ended"),
        pytest.param(
            ExceptionGroup("many", [OSError("x")]), "ExceptionGroup: many", id="failed in a group"
        ),
    ],
)
def test_a_task_is_started_again_and_shows_meanwhile(
    status: StatusBoard, pauses: Pauses, error: Exception | None, reason: str
) -> None:
    metrics = Metrics()

    with pytest.raises(Fatal, match="enough"):
        asyncio.run(supervise("watch", failing(3, error), status, metrics))

    assert pauses.delays == pytest.approx([0.2, 0.4, 0.8])
    assert all(reason in told["task:watch"] for told in pauses.told)
    assert status.readiness().ok, "a task that runs again is no news"
    restarts = metrics.task_restarts.labels("watch").value
    assert restarts == 3


def test_the_delay_is_capped(status: StatusBoard, pauses: Pauses) -> None:
    with pytest.raises(Fatal):
        asyncio.run(supervise("watch", failing(12, OSError("x")), status, Metrics()))

    assert max(pauses.delays) == pauses.delays[-1] == 30.0


def test_a_task_that_ran_long_starts_again_quickly(
    monkeypatch: pytest.MonkeyPatch, status: StatusBoard, pauses: Pauses
) -> None:
    now_s = 0.0
    monkeypatch.setattr("gpuplugin.daemon.tasks.time.monotonic", lambda: now_s)
    runs = 0

    async def task() -> None:
        nonlocal runs, now_s
        runs += 1
        now_s += 1.0 if runs != 4 else 3600.0
        if runs == 6:
            raise Fatal("enough")
        raise OSError("x")

    with pytest.raises(Fatal):
        asyncio.run(supervise("watch", task, status, Metrics()))

    assert pauses.delays == pytest.approx([0.2, 0.4, 0.8, 0.2, 0.4])


def test_a_fatal_failure_is_passed_on_at_once(status: StatusBoard, pauses: Pauses) -> None:
    with pytest.raises(Fatal, match="enough"):
        asyncio.run(supervise("watch", failing(0, None), status, Metrics()))

    assert pauses.delays == []


def test_cancelling_ends_it(status: StatusBoard) -> None:
    async def main() -> None:
        started = asyncio.Event()

        async def task() -> None:
            started.set()
            await asyncio.Event().wait()

        running = asyncio.create_task(supervise("watch", task, status, Metrics()))
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())


def test_cancelling_it_while_it_pauses_leaves_no_trace(
    status: StatusBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the resource goes whose socket could not be served: the node is ready without it."""

    async def main() -> None:
        pausing = asyncio.Event()

        async def sleep(_delay_s: float) -> None:
            pausing.set()
            await asyncio.Event().wait()

        monkeypatch.setattr("gpuplugin.daemon.tasks.asyncio.sleep", sleep)
        task = failing(1, OSError("x"))
        running = asyncio.create_task(supervise("watch", task, status, Metrics()))
        await pausing.wait()
        assert not status.readiness().ok
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert status.readiness().ok


def test_a_failure_while_it_is_cancelled_does_not_start_it_again(
    status: StatusBoard, pauses: Pauses
) -> None:
    """What fails while it tidies up puts its error in the place of the cancellation."""

    async def main() -> None:
        started = asyncio.Event()

        async def task() -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                raise OSError("cannot tidy up")

        running = asyncio.create_task(supervise("watch", task, status, Metrics()))
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert pauses.delays == []


async def _cancel_itself() -> None:
    """As Python before 3.11.3 ends a task in which a TaskGroup failed under a timeout."""
    raise asyncio.CancelledError


def test_a_task_that_is_cancelled_by_mistake_is_started_again(
    status: StatusBoard, pauses: Pauses, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    runs = 0

    async def task() -> None:
        nonlocal runs
        runs += 1
        if runs == 3:
            raise Fatal("enough")
        await _cancel_itself()

    with pytest.raises(Fatal, match="enough"):
        asyncio.run(supervise("watch", task, status, metrics))

    assert pauses.delays == pytest.approx([0.2, 0.4])
    assert all("cancelled" in told["task:watch"] for told in pauses.told)
    assert metrics.task_restarts.labels("watch").value == 2
    assert [record.getMessage() for record in caplog.records] == ["task failed"] * 2
