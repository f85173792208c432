"""What a connection's outbox holds back, and in which order it sends."""

from __future__ import annotations

import pytest

from gpuplugin.rpc.h2.flow import RESERVE_BYTES, Outbox, Outgoing
from gpuplugin.rpc.h2.frames import DEFAULT_WINDOW_BYTES, HEAD_BYTES


def an_outbox(window: int) -> Outbox:
    outbox = Outbox(lambda _stream: None)
    outbox.widen(window - DEFAULT_WINDOW_BYTES)
    return outbox


@pytest.mark.parametrize(
    ("window", "held_back"),
    [(-1, False), (0, False), (1, True), (RESERVE_BYTES, True), (RESERVE_BYTES + 1, False)],
)
def test_a_list_is_held_back_by_the_reserve_alone(window: int, held_back: bool) -> None:
    outbox = an_outbox(window)
    outbox.send(Outgoing(1, 10, is_list=True), b"list")

    assert outbox.held_back is held_back
    assert (outbox.take(100) == b"") is (window <= RESERVE_BYTES)


@pytest.mark.parametrize(("stream_window", "is_list"), [(0, True), (-1, True), (10, False)])
def test_what_waits_for_more_than_the_reserve_is_not_held_back(
    stream_window: int, is_list: bool
) -> None:
    outbox = an_outbox(RESERVE_BYTES)
    outbox.send(Outgoing(1, stream_window, is_list=is_list), b"text")

    assert not outbox.held_back


def test_a_response_overtakes_a_list_that_came_first() -> None:
    outbox = an_outbox(DEFAULT_WINDOW_BYTES)
    outbox.send(Outgoing(1, 10, is_list=True), b"list")
    outbox.send(Outgoing(3, 10), b"text")

    assert outbox.take(1)[HEAD_BYTES:] == b"text"
    assert outbox.take(1)[HEAD_BYTES:] == b"list"
    assert not outbox.unsent


def test_responses_and_frames_pile_up_and_lists_do_not() -> None:
    """A list that a peer does not read is replaced by the next one."""
    outbox = an_outbox(DEFAULT_WINDOW_BYTES)
    outbox.send(Outgoing(1, 0, is_list=True), b"a list")
    outbox.send(Outgoing(3, 0), b"text")
    outbox.send(Outgoing(5, 0), b"texts")
    outbox.put(b"frames")
    assert outbox.waiting_bytes == len(b"text" + b"texts" + b"frames")
