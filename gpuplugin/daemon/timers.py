"""Periods that end together: tasks that look at something now and then share their wake-ups.

Waking an idle process costs more than most of the looks: what can wait for the others does.
"""

from __future__ import annotations

import asyncio
import math


def next_tick_s(period_s: float) -> float:
    """The next moment on the loop's clock that is a whole number of periods."""
    now_s = asyncio.get_running_loop().time()
    return (math.floor(now_s / period_s) + 1) * period_s


async def tick_or(turn: asyncio.Event, period_s: float) -> None:
    """Sleep until the next such moment, or until `turn` is set; it is cleared then.

    An alarm that sets the event costs a tenth of a timeout, which cancels and is caught.
    """
    alarm = asyncio.get_running_loop().call_at(next_tick_s(period_s), turn.set)
    try:
        await turn.wait()
    finally:
        alarm.cancel()
    turn.clear()


async def tick(period_s: float) -> None:
    """Sleep until the next such moment: a period at the longest."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(next_tick_s(period_s) - loop.time())
