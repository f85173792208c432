"""How long to wait before trying again."""

from __future__ import annotations


class Backoff:
    """Doubling delays from `first_s` up to `cap_s`."""

    def __init__(self, first_s: float, cap_s: float) -> None:
        self._first_s = first_s
        self._cap_s = cap_s
        self._next_s = first_s

    def next_s(self) -> float:
        """The delay before the next try, in seconds."""
        delay_s = self._next_s
        self._next_s = min(delay_s * 2, self._cap_s)
        return delay_s

    def reset(self) -> None:
        """Start again with the first delay."""
        self._next_s = self._first_s
