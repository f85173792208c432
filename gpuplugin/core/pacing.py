"""When a changed device list is sent: at once, but not list after list. No clock: time is given."""

from __future__ import annotations

PAUSE_S = 0.02
"""Between two lists, whatever happens: a storm of events is a few lists, not thousands."""


def list_due_s(now_s: float, last_list_s: float) -> float:
    """When the list that changed at `now_s` is to be sent, if the last one was at `last_list_s`."""
    return max(now_s, last_list_s + PAUSE_S)
