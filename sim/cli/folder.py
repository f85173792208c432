"""One kubelet stand-in for each folder: a second one would take over its sockets."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LOCK = "sim-kubelet.lock"


class Taken(Exception):
    """Another process has the folder; the text says which, and what to do."""


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Have the folder until the block ends, or this process does.

    Raises:
        Taken: another process has it.
        OSError: it cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            raise Taken(
                f"{folder} is in use by {owner}: stop that, or choose another --kubelet-dir"
            ) from None
        lock.truncate(0)
        lock.write(f"the kubelet stand-in of process {os.getpid()}")
        lock.flush()
        yield
