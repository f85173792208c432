"""Follows the label of this node that chooses its configuration.

A thread waits for changes of the Node object at the API server and hands each on to the event loop;
what a label means is in `core.nodechoice`. The API client is imported only if this is wanted.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Protocol

from gpuplugin.core.pacing import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COMPONENT = "node-label"

log = logging.getLogger(__name__)


class LabelUnreadable(Exception):
    """The API server does not tell the node's label; the text says why and what to do."""


class LabelSource(Protocol):
    """Where the label comes from; calls block."""

    def read(self) -> str | None:
        """The label now, None if the node has none.

        Raises:
            LabelUnreadable: it cannot be read.
        """
        ...

    def follow(self) -> Iterator[str | None]:
        """The label, and again at each change, until the server ends the watch.

        Raises:
            LabelUnreadable: it cannot be followed.
        """
        ...


class LabelWatch:
    """The task; `label` is what was last heard. Event loop only, but for its thread."""

    def __init__(self, source: LabelSource) -> None:
        self.label: str | None = None
        self._source = source

    def read_first(self) -> None:
        """Ask once, before anything is served: a node should not begin with another's devices."""
        try:
            self.label = self._source.read()
        except LabelUnreadable as error:
            log.error("%s", error, extra={"event": "node-label-unreadable"})  # noqa: TRY400

    async def run(self, changed: Callable[[], None], tell: Callable[[str, bool], None]) -> None:
        """Follow for ever: `changed` is called when the label is another one.

        `tell` is given words on how it goes, and whether it goes well.
        """
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[str | LabelUnreadable | None] = asyncio.Queue()
        stop = threading.Event()

        def hand_on(news: str | LabelUnreadable | None) -> None:
            if not stop.is_set():
                loop.call_soon_threadsafe(heard.put_nowait, news)

        thread = threading.Thread(
            target=_follow, args=(self._source, hand_on, stop), name="node-label", daemon=True
        )
        thread.start()
        try:
            while True:
                news = await heard.get()
                if isinstance(news, LabelUnreadable):
                    tell(f"{news}; the configuration stays as it is", False)
                    continue
                tell(_words(news), True)
                if news != self.label:
                    self.label = news
                    changed()
        finally:
            stop.set()


def _follow(
    source: LabelSource,
    hand_on: Callable[[str | LabelUnreadable | None], None],
    stop: threading.Event,
) -> None:
    """In the thread: watch, and watch again when the watch ends."""
    backoff = Backoff(1.0, 60.0)
    while not stop.is_set():
        try:
            for label in source.follow():
                backoff.reset()
                hand_on(label)
            pause_s = 0.1  # the server ends watches now and then
        except LabelUnreadable as error:
            hand_on(error)
            pause_s = backoff.next_s()
        stop.wait(pause_s)


def _words(label: str | None) -> str:
    return "the node has no label that chooses" if label is None else f"the node's label: {label}"
