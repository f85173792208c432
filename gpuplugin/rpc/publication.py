"""A value that streams follow: every subscriber gets the newest one, none of the old ones.

A slow or stuck stream therefore costs one message of memory, however many updates it missed.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Publication:
    """Publishes serialised messages to any number of subscriptions; safe from any thread."""

    def __init__(self) -> None:
        self.on_streams: Callable[[], None] = _nothing
        """Called, in any thread, when a stream began or ended; must not wait."""
        self._lock = threading.Lock()
        self._message: bytes | None = None
        self._version = 0
        self._subscribers: dict[_Subscription, None] = {}
        """The oldest first."""
        self._opened = 0

    def publish(self, message: bytes) -> bool:
        """Make `message` the newest; False, and nothing is sent, if it equals the last one."""
        with self._lock:
            if message == self._message:
                return False
            self._message = message
            self._version += 1
            waiting = tuple(self._subscribers)
        for subscriber in waiting:
            subscriber.wake()
        return True

    def subscribe(self, wake: Callable[[], None]) -> _Subscription:
        """Open a subscription; `wake` is called at once if there is a message to take."""
        subscription = _Subscription(self, wake)
        with self._lock:
            self._subscribers[subscription] = None
            self._opened += 1
            ready = self._message is not None
        self.on_streams()
        if ready:
            wake()
        return subscription

    def end_streams(self) -> None:
        """End the streams that are open now, so that a server can stop without waiting."""
        with self._lock:
            ending = tuple(self._subscribers)
        for subscriber in ending:
            subscriber.closed = True
            subscriber.wake()

    def end_newest(self) -> None:
        """End the stream that was opened last, so that there is room for another one."""
        with self._lock:
            if not self._subscribers:
                return
            newest, _ = self._subscribers.popitem()
        newest.closed = True
        newest.wake()

    @property
    def open_streams(self) -> int:
        with self._lock:
            return len(self._subscribers)

    @property
    def opened_streams(self) -> int:
        with self._lock:
            return self._opened

    @property
    def size_bytes(self) -> int:
        with self._lock:
            return len(self._message or b"")

    def _take(self, seen_version: int) -> tuple[int, bytes | None]:
        with self._lock:
            if self._version == seen_version:
                return seen_version, None
            return self._version, self._message

    def _drop(self, subscription: _Subscription) -> None:
        with self._lock:
            self._subscribers.pop(subscription, None)
        self.on_streams()


def _nothing() -> None:
    """Used until `on_streams` is set."""


class _Subscription:
    def __init__(self, publication: Publication, wake: Callable[[], None]) -> None:
        self._publication = publication
        self._seen_version = 0
        self.wake = wake
        self.closed = False

    def take(self) -> bytes | None:
        self._seen_version, message = self._publication._take(self._seen_version)  # noqa: SLF001 - one class in two parts
        return message

    def close(self) -> None:
        self._publication._drop(self)  # noqa: SLF001
