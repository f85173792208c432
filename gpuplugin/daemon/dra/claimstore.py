"""The file of claims: whole or not at all, and shared by the instances of an upgrade.

Two plugins may serve one node for a moment. Both see the same claims: each change is made under a
lock on a file beside it, after the newest file was read.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gpuplugin.core.dra.claims import BrokenCheckpoint, Claims, decoded, encoded
from gpuplugin.daemon.logs import log_fact
from gpuplugin.daemon.serving.sockets import identity
from gpuplugin.daemon.wholefiles import remove_unfinished, sync_folder, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gpuplugin.daemon.serving.sockets import Identity

FILE, LOCK = "claims.json", "claims.lock"
_OPEN = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC
_MODE = 0o640
"""An instance that follows may run as another user, of the group that the folder has."""

_UNTRIED: Final = RuntimeError("not tried")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Change:
    """What somebody wants changed, and what came of it."""

    made: Callable[[Claims], Claims]
    for_good: bool
    outcome: Claims | Exception = _UNTRIED


class _Held:
    """A file that is open, so that no other one gets its inode: times alone may be the same.

    The clock of files ticks every few ms, in which there can be several writes.
    """

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self.descriptor)
        self.identity: Identity = status.st_dev, status.st_ino, status.st_ctime_ns

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@contextmanager
def to_lock(path: Path) -> Iterator[int]:
    """A file to lock, by its descriptor, whose end ends the lock; raises `OSError`."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    descriptor = os.open(path, _OPEN, _MODE)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class ClaimStore:
    """The claims of this node, in `folder`; safe for threads and for several processes.

    `rebuilt` is asked for claims where there is no file that can be read. Changes that come while
    the disk is busy are written together: many claims cost hardly more than one.
    """

    def __init__(self, folder: Path, boot_id: str, rebuilt: Callable[[], Claims]) -> None:
        self._folder = folder
        self._path = folder / FILE
        self.boot_id = boot_id
        self._rebuilt = rebuilt
        self._mutex = threading.Lock()
        self._changes: deque[_Change] = deque()
        self._read: tuple[_Held | None, Claims] | None = None
        """The file that was read last, None if there was none, and its claims."""
        self._tidy = False

    @property
    def claims(self) -> Claims:
        """The newest ones; raises `OSError`. Never waits for the disk."""
        return self._load()

    @property
    def waiting(self) -> int:
        """How many changes wait for the disk."""
        return len(self._changes)

    def change(self, made: Callable[[Claims], Claims], *, for_good: bool = True) -> Claims:
        """Put what `made` makes of the newest claims in their place.

        It is on the disk then; if it is not `for_good`, the file may be the one before, or
        broken, after a crash of the machine, which undoes what claims have set up anyway. Raises
        what `made` raises, and `OSError`; the file is as before then.
        """
        change = _Change(made, for_good)
        self._changes.append(change)
        with self._mutex:
            if change.outcome is _UNTRIED:
                self._make_all()
        if isinstance(change.outcome, Exception):
            raise change.outcome
        return change.outcome

    def _make_all(self) -> None:
        """Make all changes that wait, and write once."""
        changes = [self._changes.popleft() for _ in range(len(self._changes))]
        try:
            with self._locked():
                if not self._tidy:
                    remove_unfinished(self._path)  # who writes it has the lock
                    self._tidy = True
                before = after = self._load()
                for change in changes:
                    try:
                        change.outcome = after = change.made(after)
                    except Exception as error:  # noqa: BLE001 - raised where it was wanted
                        change.outcome = error
                if after != before or self._read is None or self._read[0] is None:
                    for_good = any(change.for_good for change in changes)
                    write_whole(self._path, encoded(after), _MODE, synced=for_good)
                    if for_good:
                        sync_folder(self._folder)
                    self._read = _Held(self._path), after
        except OSError as error:
            for change in changes:
                if change.outcome is _UNTRIED or not isinstance(change.outcome, Exception):
                    change.outcome = error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with to_lock(self._folder / LOCK) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield

    def _load(self) -> Claims:
        """The file may be replaced meanwhile: what was read is that of before or after."""
        read = self._read
        if read is not None and identity(self._path) == (read[0] and read[0].identity):
            return read[1]
        held = None
        try:
            held = _Held(self._path)
            with open(held.descriptor, encoding="utf-8", closefd=False) as stream:
                claims = decoded(stream.read())
        except FileNotFoundError:
            claims = self._rebuilt()
        except (BrokenCheckpoint, UnicodeDecodeError) as error:
            text = f"{self._path} cannot be read, its claims are found anew: {error}"
            log_fact(log, logging.ERROR, "claims-broken", text)
            claims = self._rebuilt()
        claims = claims.rebooted(self.boot_id)
        self._read = held, claims
        return claims
