"""Finds the sockets below a folder, as the kubelet's plugin watcher does; nobody is asked anything.

Names that begin with a dot are passed over, and what is gone by the time it is looked at.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from pathlib import Path


def sockets_below(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The sockets and what the file system tells of each, in the order of their names."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            status = entry.lstat()
        except OSError:
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from sockets_below(entry)
        elif stat.S_ISSOCK(status.st_mode):
            yield entry, status
