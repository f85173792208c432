"""Processes that may hang: all that are below this one can be found and killed."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KILL_S = 5.0
SET_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36


def adopt_orphans() -> None:
    """What loses its parent becomes a child of this process from now on, and can be killed."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """Kill this process when the one that started it ends."""
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGKILL)


def descendants() -> set[int]:
    """All processes below this one that have not ended."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name, in brackets, may have spaces and brackets of its own.
            state, parent, *_ = stat.read_text().rpartition(")")[2].split()
            if state != "Z":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    return set(_below(os.getpid(), children))


def _below(pid: int, children: Mapping[int, list[int]]) -> Iterator[int]:
    for child in children.get(pid, ()):
        yield child
        yield from _below(child, children)


def kill(pids: set[int]) -> set[int]:
    """Kill these and what they start meanwhile; those that do not end within `KILL_S` are left."""
    kept = descendants() - pids
    deadline_s = time.monotonic() + KILL_S
    while (left := descendants() - kept) and time.monotonic() < deadline_s:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return left
