"""When lists are sent: soon, and never many."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.core.pacing import PAUSE_S, list_due_s


def lists(changes_s: list[float]) -> list[float]:
    """When lists are sent if these changes happen, by the rule alone."""
    sent: list[float] = []
    due_s: float | None = None
    for change_s in sorted(changes_s):
        if due_s is not None and due_s < change_s:
            sent.append(due_s)
            due_s = None
        if due_s is None:
            due_s = list_due_s(change_s, sent[-1] if sent else float("-inf"))
    return sent if due_s is None else [*sent, due_s]


def test_a_change_after_a_quiet_time_is_told_at_once() -> None:
    assert lists([7.0]) == [7.0]


def test_what_follows_closely_is_one_list() -> None:
    assert lists([7.0, 7.004, 7.009, 7.019]) == [7.0, 7.0 + PAUSE_S]


def test_a_storm_of_a_thousand_changes_in_a_tenth_of_a_second_is_a_few_lists() -> None:
    assert len(lists([number / 10_000 for number in range(1000)])) == 6


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_every_change_is_told_and_lists_keep_their_distance(changes_s: list[float]) -> None:
    sent = lists(changes_s)
    for earlier, later in itertools.pairwise(sent):
        assert later - earlier >= PAUSE_S - 1e-9
    for change_s in changes_s:
        told_s = next(at_s for at_s in sent if at_s >= change_s)
        assert told_s - change_s <= PAUSE_S + 1e-9
    assert sent[0] == min(changes_s)
