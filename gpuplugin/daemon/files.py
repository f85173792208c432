"""Tells tasks that something changed in a folder, by inotify, so that they need not look.

The libraries for it start a program at each start, to find the C library.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
from struct import Struct
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

LOOK_S = 60.0
"""How often to look for what the kernel does not report, as on a network file system."""
BLIND_LOOK_S = 2.0
"""The same where it reports nothing."""
PAUSE_S = 0.1
"""After a change, so that a folder where much happens wakes nobody more often."""

# Linux, include/uapi/linux/inotify.h.
_WATCHED = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
"""Content, rights, a file that was written, moved away or here, made, removed; the folder itself
removed or moved."""
_OVERFLOW, _IGNORED = 0x4000, 0x8000
"""There were too many events; a watch has ended with its folder."""
_EVENT = Struct("iIII")
"""struct inotify_event: watch, mask, cookie and the length of the name that follows."""
_READ_BYTES = 64 * 1024

log = logging.getLogger(__name__)


class FileWatch:
    """The folders that tasks of one event loop follow; to be made and closed on it."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._loop = asyncio.get_running_loop()
        self._followers: dict[int, WeakKeyDictionary[asyncio.Event, Callable[[str], object]]] = {}
        """By watch. Who has gone, as the endpoint of a resource that there was, is not kept."""
        self._resting: asyncio.TimerHandle | None = None
        self._descriptor = _init(self._libc)
        if self._descriptor < 0:
            reason = os.strerror(ctypes.get_errno())
            log.info("inotify cannot be used: %s; looking at files instead", reason)
        else:
            self._loop.add_reader(self._descriptor, self._changed)

    def close(self) -> None:
        if self._descriptor >= 0:
            if self._resting is not None:
                self._resting.cancel()
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def follow(
        self,
        folders: Iterable[Path],
        turn: asyncio.Event,
        changed: Callable[[str], object] = str,
    ) -> float:
        """Set `turn` whenever something in these folders changes, as long as they exist.

        `changed` is called before that, with each name in them that something happened to: what
        came and went at once is no longer there to be looked at. To be called again after each
        time; from any thread, since a folder may be on a network. Returns how often, in seconds,
        to look for what is not reported.
        """
        looks_s = [LOOK_S]
        for folder in folders:
            watch = self._libc.inotify_add_watch(
                self._descriptor, os.fsencode(folder), ctypes.c_uint32(_WATCHED)
            )
            if watch >= 0:
                self._followers.setdefault(watch, WeakKeyDictionary())[turn] = changed
            elif ctypes.get_errno() != errno.ENOENT:
                looks_s.append(BLIND_LOOK_S)
        return min(looks_s)

    def _changed(self) -> None:
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        for watch, mask, name in _events(data):
            lost = tuple(self._followers) if mask & _OVERFLOW else ()
            for one in (watch, *lost):
                self._tell(one, name)
            if mask & _IGNORED:
                self._followers.pop(watch, None)
        self._loop.remove_reader(self._descriptor)
        self._resting = self._loop.call_later(PAUSE_S, self._rested)

    def _tell(self, watch: int, name: str) -> None:
        if (followers := self._followers.get(watch)) is None:
            return
        for reference in followers.keyrefs():  # a copy: others may begin to follow meanwhile
            if (turn := reference()) is not None and (changed := followers.get(turn)) is not None:
                changed(name)
                turn.set()

    def _rested(self) -> None:
        self._resting = None
        if self._descriptor >= 0:
            self._loop.add_reader(self._descriptor, self._changed)


def _init(libc: ctypes.CDLL) -> int:
    """The descriptor; -1 if this user has too many."""
    descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    return descriptor


def _events(data: bytes) -> Iterator[tuple[int, int, str]]:
    """The watch, the mask and the name of each event; no name for the folder itself."""
    at = 0
    while at < len(data):
        watch, mask, _cookie, name_bytes = _EVENT.unpack_from(data, at)
        at += _EVENT.size + name_bytes
        yield watch, mask, os.fsdecode(data[at - name_bytes : at].rstrip(b"\0"))
