"""The file of a listening socket."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class SocketFile:
    """The file that was just made by binding a socket to a path.

    A plugin that is being replaced may end after the next one has put its own socket there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._made = path.lstat()

    def remove(self) -> None:
        """Remove it, if it is still this one. While the socket is open no other has its inode."""
        with suppress(OSError):  # the file, or its folder, was removed
            if os.path.samestat(self._path.lstat(), self._made):
                self._path.unlink()
