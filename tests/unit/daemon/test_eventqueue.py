"""Events that wait: how many, how often, and which are the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.core.nodecondition import GpuReport
from gpuplugin.daemon.cluster.eventqueue import (
    MAX_EVENT_AGE_S,
    SAME_WITHIN_S,
    EventQueue,
    NodeEvent,
    TokenBucket,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


def sick(gpu: int) -> GpuReport:
    return GpuReport(f"GPU-{gpu}", str(gpu), "Unhealthy", "lost", "reset")


class Queue:
    """A queue and its clock."""

    def __init__(self, capacity: int = 100, node: str = "node-1") -> None:
        self.queue = EventQueue(node, capacity)
        self.now_s = 50.0

    def add(self, news: GpuReport) -> int:
        return self.queue.add(news, self.now_s, START + timedelta(seconds=self.now_s))

    def next(self) -> NodeEvent:
        event = self.queue.next()
        assert event is not None
        return event

    def sent(self) -> NodeEvent:
        """Send one."""
        event = self.next()
        self.queue.settled(event, sent=True)
        return event


def test_events_go_in_their_order_once() -> None:
    queue = Queue()
    for gpu in range(3):
        assert queue.add(sick(gpu)) == 0

    messages = [queue.sent().message for _ in range(3)]

    assert messages == [sick(gpu).event_message for gpu in range(3)]
    assert queue.queue.next() is None


def test_an_event_says_what_happened_when() -> None:
    queue = Queue()
    queue.add(sick(4))
    event = queue.next()

    assert (event.reason, event.type, event.count, event.known) == (
        "GPUUnhealthy",
        "Warning",
        1,
        False,
    )
    assert event.first == event.last == START + timedelta(seconds=50)


def test_the_same_event_is_counted_while_it_waits() -> None:
    queue = Queue()
    for gpu in (0, 1, 0, 0):
        queue.now_s += 1
        queue.add(sick(gpu))

    event = queue.sent()
    assert (event.count, event.known) == (3, False)
    assert event.last - event.first == timedelta(seconds=3)
    assert queue.sent().count == 1
    assert queue.queue.next() is None


def test_the_same_event_is_counted_up_after_it_was_sent() -> None:
    queue = Queue()
    queue.add(sick(0))
    first = queue.sent()
    queue.now_s += SAME_WITHIN_S - 1
    queue.add(sick(0))
    again = queue.sent()

    assert (again.name, again.count, again.known) == (first.name, 2, True)
    assert (again.first, again.last) == (
        first.first,
        first.first + timedelta(seconds=SAME_WITHIN_S - 1),
    )


def test_after_the_window_the_same_event_is_a_new_one() -> None:
    queue = Queue()
    queue.add(sick(0))
    first = queue.sent()
    queue.now_s += SAME_WITHIN_S
    queue.add(sick(0))
    again = queue.sent()

    assert again.name != first.name
    assert (again.count, again.known) == (1, False)


def test_what_comes_while_an_event_is_on_its_way_is_sent_after_it() -> None:
    queue = Queue()
    queue.add(sick(0))
    event = queue.next()
    queue.add(sick(0))
    queue.queue.settled(event, sent=True)

    rest = queue.sent()
    assert (rest.name, rest.count, rest.known) == (event.name, 2, True)
    assert queue.queue.next() is None


def test_the_oldest_give_way() -> None:
    queue = Queue(capacity=3)
    assert [queue.add(sick(gpu)) for gpu in range(5)] == [0, 0, 0, 1, 1]

    assert [queue.sent().message for _ in range(3)] == [
        sick(gpu).event_message for gpu in (2, 3, 4)
    ]
    assert queue.queue.next() is None


def test_an_event_that_gave_way_on_its_way_is_not_missed() -> None:
    queue = Queue(capacity=1)
    queue.add(sick(0))
    on_its_way = queue.next()
    queue.add(sick(1))
    queue.add(sick(0))
    queue.queue.settled(on_its_way, sent=True)

    rest = queue.sent()
    assert rest.name != on_its_way.name
    assert (rest.count, rest.known) == (1, False)


def test_a_refused_event_is_given_up_and_the_next_same_one_is_new() -> None:
    queue = Queue()
    queue.add(sick(0))
    refused = queue.next()
    queue.queue.settled(refused, sent=False)
    assert queue.queue.next() is None

    queue.add(sick(0))
    assert (queue.next().count, queue.next().known) == (1, False)
    assert queue.next().name != refused.name


def test_stale_events_are_dropped() -> None:
    queue = Queue()
    queue.add(sick(0))
    queue.now_s += 1
    queue.add(sick(1))
    queue.now_s += MAX_EVENT_AGE_S

    assert queue.queue.drop_stale(queue.now_s) == 1
    assert queue.sent().message == sick(1).event_message


def test_names_are_the_nodes_and_never_the_same() -> None:
    queue = Queue(capacity=500)
    for gpu in range(500):
        queue.add(sick(gpu))
    names = [queue.sent().name for _ in range(500)]

    assert len(set(names)) == 500
    assert all(name.startswith("node-1.") for name in names)


@pytest.mark.parametrize("node", ["n" * 253, "n" * 232 + "." + "n" * 20])
def test_names_are_names_even_on_a_node_with_a_long_one(node: str) -> None:
    queue = Queue(node=node)
    queue.add(sick(0))
    name = queue.next().name

    assert len(name) <= 253
    assert ".." not in name


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.floats(0, 400)), max_size=200))
def test_whatever_comes_the_queue_is_bounded_and_nothing_is_lost_unsaid(
    steps: list[tuple[int, bool, float]],
) -> None:
    queue = Queue(capacity=5)
    dropped, sent = 0, 0
    known: dict[str, int] = {}
    for gpu, send, pause_s in steps:
        queue.now_s += pause_s
        dropped += queue.add(sick(gpu))
        assert len(queue.queue) <= 5
        if send:
            event = queue.sent()
            assert event.known == (event.name in known)
            assert event.count > known.get(event.name, 0)
            known[event.name] = event.count
            sent += 1
    assert sent + dropped + len(queue.queue) <= len(steps)
    assert len(queue.queue._series) <= len(steps)


def test_a_bucket_gives_its_burst_and_then_one_by_one() -> None:
    bucket = TokenBucket(3, 10.0)
    given_at_s = []
    now_s = 1000.0
    for _ in range(6):
        now_s = bucket.due_s(now_s)
        bucket.take(now_s)
        given_at_s.append(now_s - 1000)

    assert given_at_s == [0, 0, 0, 10, 20, 30]


def test_a_bucket_fills_up_to_its_burst_and_no_more() -> None:
    bucket = TokenBucket(2, 10.0)
    for _ in range(2):
        bucket.take(0.0)
    now_s = 1e6
    for _ in range(2):
        assert bucket.due_s(now_s) == now_s
        bucket.take(now_s)

    assert bucket.due_s(now_s) == now_s + 10
