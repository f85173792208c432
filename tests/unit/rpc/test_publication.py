"""A value that streams follow."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.rpc.publication import Publication

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_S = 10.0


class Waker:
    """Counts its calls and can be waited for."""

    def __init__(self) -> None:
        self.calls = 0
        self._woken = threading.Event()

    def __call__(self) -> None:
        self.calls += 1
        self._woken.set()

    def wait(self) -> None:
        assert self._woken.wait(DEADLINE_S)
        self._woken.clear()


def test_a_subscriber_gets_only_the_newest_message() -> None:
    publication = Publication()
    stream = publication.subscribe(lambda: None)
    for message in (b"one", b"two", b"three"):
        assert publication.publish(message)

    assert stream.take() == b"three"
    assert stream.take() is None


def test_an_equal_message_is_not_sent_again() -> None:
    publication, waker = Publication(), Waker()
    stream = publication.subscribe(waker)
    publication.publish(b"one")
    stream.take()

    assert not publication.publish(b"one")
    assert waker.calls == 1
    assert stream.take() is None


def test_going_back_to_an_earlier_message_is_news() -> None:
    publication = Publication()
    stream = publication.subscribe(lambda: None)
    publication.publish(b"one")
    assert stream.take() == b"one"

    assert publication.publish(b"two")
    assert publication.publish(b"one")
    assert stream.take() == b"one"


def test_a_late_subscriber_is_woken_at_once_and_gets_the_message() -> None:
    publication, waker = Publication(), Waker()
    publication.publish(b"one")

    stream = publication.subscribe(waker)

    assert waker.calls == 1
    assert stream.take() == b"one"


def test_before_the_first_message_there_is_nothing_to_take() -> None:
    publication, waker = Publication(), Waker()
    stream = publication.subscribe(waker)

    assert waker.calls == 0
    assert stream.take() is None
    assert publication.size_bytes == 0


def test_an_empty_message_is_a_message() -> None:
    publication = Publication()
    stream = publication.subscribe(lambda: None)

    assert publication.publish(b"")
    assert stream.take() == b""


def test_every_subscriber_gets_the_message_in_its_own_time() -> None:
    publication = Publication()
    first, second = publication.subscribe(lambda: None), publication.subscribe(lambda: None)
    publication.publish(b"one")
    assert first.take() == b"one"
    publication.publish(b"two")

    assert (first.take(), second.take()) == (b"two", b"two")


def test_a_closed_subscription_is_not_woken_and_may_close_twice() -> None:
    publication, waker = Publication(), Waker()
    stream = publication.subscribe(waker)
    stream.close()
    stream.close()

    publication.publish(b"one")

    assert waker.calls == 0
    assert (publication.open_streams, publication.opened_streams) == (0, 1)


def test_ending_the_streams_wakes_those_that_are_open_and_no_later_one() -> None:
    publication, waker = Publication(), Waker()
    stream = publication.subscribe(waker)
    publication.end_streams()
    later = publication.subscribe(lambda: None)

    assert stream.closed
    assert waker.calls == 1
    assert not later.closed


def test_ending_the_newest_stream_ends_no_other_one() -> None:
    publication, wakers = Publication(), (Waker(), Waker())
    publication.end_newest()
    older, newest = map(publication.subscribe, wakers)
    publication.end_newest()

    assert (older.closed, newest.closed) == (False, True)
    assert [waker.calls for waker in wakers] == [0, 1]
    assert publication.open_streams == 1


def test_a_subscriber_may_close_while_it_is_woken() -> None:
    publication = Publication()
    closers: list[Callable[[], None]] = []

    def wake() -> None:
        for close in closers:
            close()

    closers.append(publication.subscribe(wake).close)
    publication.publish(b"one")

    assert publication.open_streams == 0


def test_a_subscriber_may_take_while_it_is_woken() -> None:
    publication = Publication()
    taken: list[bytes | None] = []
    stream = publication.subscribe(lambda: taken.append(stream.take()))

    publication.publish(b"one")

    assert taken == [b"one"]


@given(st.lists(st.sampled_from([b"", b"a", b"b", b"take"]), max_size=20))
def test_what_is_taken_is_always_the_newest_and_never_twice(steps: list[bytes]) -> None:
    publication = Publication()
    stream = publication.subscribe(lambda: None)
    newest: bytes | None = None
    pending = False
    for step in steps:
        if step == b"take":
            assert stream.take() == (newest if pending else None)
            pending = False
            continue
        changed = step != newest
        assert publication.publish(step) == changed
        pending, newest = pending or changed, step


def test_threads_that_follow_all_see_the_last_message_in_order() -> None:
    publication = Publication()
    last = 300
    seen: list[list[int]] = [[] for _ in range(3)]
    failed: list[BaseException] = []

    def follow(into: list[int]) -> None:
        waker = Waker()
        stream = publication.subscribe(waker)
        try:
            while not into or into[-1] != last:
                waker.wait()
                if (message := stream.take()) is not None:
                    into.append(int(message))
            stream.close()
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            failed.append(error)

    followers = [threading.Thread(target=follow, args=(into,)) for into in seen]
    for thread in followers:
        thread.start()
    for number in range(1, last + 1):
        publication.publish(str(number).encode())
    for thread in followers:
        thread.join(DEADLINE_S)

    assert not failed
    assert not any(thread.is_alive() for thread in followers)
    assert all(into == sorted(set(into)) and into[-1] == last for into in seen)
    assert publication.open_streams == 0


def test_threads_that_publish_leave_one_of_their_last_messages() -> None:
    publication = Publication()
    stream = publication.subscribe(lambda: None)

    def publish(name: int) -> None:
        for number in range(100):
            publication.publish(f"{name}-{number}".encode())

    threads = [threading.Thread(target=publish, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)

    assert stream.take() in {f"{name}-99".encode() for name in range(3)}
    assert stream.take() is None
