"""The file of claims: whole or not at all, and shared by the instances of an upgrade.

Two plugins may serve one node for a moment. Both see the same claims: each change is made under a
lock on a file beside it, after the newest file was read.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gpuplugin.core.dra.claims import BrokenCheckpoint, Claims, decoded, encoded
from gpuplugin.daemon.logs import log_fact
from gpuplugin.daemon.serving.sockets import identity
from gpuplugin.daemon.wholefiles import sync_folder, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gpuplugin.daemon.serving.sockets import Identity

FILE, LOCK = "claims.json", "claims.lock"
_OPEN = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC
_MODE = 0o640
"""An instance that follows may run as another user, of the group that the folder has."""

log = logging.getLogger(__name__)


class ClaimStore:
    """The claims of this node, in `folder`; safe for threads and for several processes.

    `rebuilt` is asked for claims where there is no file that can be read.
    """

    def __init__(self, folder: Path, boot_id: str, rebuilt: Callable[[], Claims]) -> None:
        self._folder = folder
        self._path = folder / FILE
        self.boot_id = boot_id
        self._rebuilt = rebuilt
        self._mutex = threading.Lock()
        self._read: tuple[Identity | None, Claims] | None = None

    @property
    def claims(self) -> Claims:
        """The newest ones; raises `OSError`."""
        with self._locked():
            return self._load()

    def change(self, made: Callable[[Claims], Claims], *, for_good: bool = True) -> Claims:
        """Put what `made` makes of the newest claims in their place.

        It is on the disk then; if it is not `for_good`, the file may be the one before after a
        crash of the machine. Raises what `made` raises, and `OSError`; the file is as before then.
        """
        with self._locked():
            before = self._load()
            after = made(before)
            if after != before or self._read is None or self._read[0] is None:
                write_whole(self._path, encoded(after), _MODE, synced=True)
                if for_good:
                    sync_folder(self._folder)
                self._read = identity(self._path), after
            return after

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._mutex:
            self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            descriptor = os.open(self._folder / LOCK, _OPEN, _MODE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)  # which ends the lock

    def _load(self) -> Claims:
        newest = identity(self._path)
        if self._read is not None and self._read[0] == newest:
            return self._read[1]
        try:
            claims = decoded(self._path.read_text("utf-8"))
        except FileNotFoundError:
            claims = self._rebuilt()
        except (BrokenCheckpoint, UnicodeDecodeError) as error:
            text = f"{self._path} cannot be read, its claims are found anew: {error}"
            log_fact(log, logging.ERROR, "claims-broken", text)
            claims = self._rebuilt()
        claims = claims.rebooted(self.boot_id)
        self._read = newest, claims
        return claims
