"""Timing without a clock: back-off, whole periods, and the pause between two device lists."""

from __future__ import annotations

import math

PAUSE_S = 0.02
"""Between two lists, so that a storm of events is a few lists, not thousands."""


def list_due_s(now_s: float, last_list_s: float) -> float:
    """When the list that changed at `now_s` is to be sent, if the last one was at `last_list_s`."""
    return max(now_s, last_list_s + PAUSE_S)


def next_multiple_s(now_s: float, period_s: float) -> float:
    """The next moment after `now_s` that is a whole number of periods.

    Tasks that wait for such moments share their wake-ups, which cost an idle process more than
    most of its work.
    """
    return (math.floor(now_s / period_s) + 1) * period_s


class Backoff:
    """Doubling delays from `first_s` up to `cap_s`."""

    def __init__(self, first_s: float, cap_s: float) -> None:
        self._first_s = first_s
        self._cap_s = cap_s
        self._next_s = first_s

    def next_s(self) -> float:
        delay_s = self._next_s
        self._next_s = min(delay_s * 2, self._cap_s)
        return delay_s

    def reset(self) -> None:
        self._next_s = self._first_s
