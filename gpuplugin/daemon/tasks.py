"""Tasks of the daemon: restarted with back-off if they fail, and woken together."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from gpuplugin.core.pacing import Backoff, next_multiple_s
from gpuplugin.daemon.logs import log_fact

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gpuplugin.daemon.http.metrics import Metrics
    from gpuplugin.daemon.status import StatusBoard


async def wait_period_or(turn: asyncio.Event, period_s: float) -> None:
    """Sleep as `wait_period`, or until `turn` is set; it is cleared then.

    An alarm that sets the event costs a tenth of a timeout, which cancels and is caught.
    """
    loop = asyncio.get_running_loop()
    alarm = loop.call_at(next_multiple_s(loop.time(), period_s), turn.set)
    try:
        await turn.wait()
    finally:
        alarm.cancel()
    turn.clear()


async def wait_period(period_s: float) -> None:
    """Sleep until the loop's clock is a whole number of periods: tasks wake together."""
    now_s = asyncio.get_running_loop().time()
    await asyncio.sleep(next_multiple_s(now_s, period_s) - now_s)


_STABLE_AFTER_S = 60.0

log = logging.getLogger(__name__)


class Fatal(Exception):
    """A failure that must end the daemon; the text is for the person who reads the log."""


class _Cancelled(Exception):
    """A task was cancelled, but not by its supervisor."""


async def supervise(
    name: str, task: Callable[[], Awaitable[None]], status: StatusBoard, metrics: Metrics
) -> None:
    """Run `task` for ever, and start it again 0.2 to 30 s after it ended; raises its `Fatal`.

    A cancellation that does not come from here is a failure like others: Python before 3.11.3
    leaves one behind where a timeout surrounds a TaskGroup that failed.
    """
    backoff = Backoff(0.2, 30.0)
    while True:
        started_s = time.monotonic()
        try:
            await alone(task, name)
            reason = "it ended"
        except Fatal:
            raise
        except Exception as error:
            if isinstance(error, ExceptionGroup) and error.subgroup(Fatal) is not None:
                raise
            log.exception("task failed", extra={"event": "task-failed", "task": name})
            reason = f"{type(error).__name__}: {error}"
        if time.monotonic() - started_s > _STABLE_AFTER_S:
            backoff.reset()
        delay_s = backoff.next_s()
        metrics.task_restarts.labels(task=name).inc()
        status.set(f"task:{name}", f"restarting in {delay_s:g} s: {reason}", ok=False)
        try:
            await asyncio.sleep(delay_s)
        finally:
            status.remove(f"task:{name}")


async def alone(task: Callable[[], Awaitable[None]], name: str) -> None:
    """Run `task` so that its failures and cancellations are told from those of the caller.

    A TaskGroup that fails leaves its task behind as one that is being cancelled (Python 3.11).
    """
    running = asyncio.ensure_future(task())
    if isinstance(running, asyncio.Task):
        running.set_name(name)
    try:
        await asyncio.wait({running})
    except asyncio.CancelledError:
        # A failure while it tidies up must not take the place of the cancellation.
        running.cancel()
        await asyncio.wait({running})
        if not running.cancelled() and (error := running.exception()) is not None:
            text = f"{name} ended with: {error}"
            log_fact(log, logging.WARNING, "task-untidy", text, task=name)
        raise
    if running.cancelled():
        raise _Cancelled("it was cancelled, and the daemon goes on")
    await running
