"""A host's file system below the folder where it is mounted, and the unix sockets in it."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from gpuplugin.doctor.facts import FileFact, SocketFact, SocketState

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_LINKS = 40
_MOST_BYTES = 4 * 1024 * 1024


class HostRoot:
    """The file system of a host below `folder`.

    An absolute link (/var/run -> /run) leads to the host's file, not to one of this container.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def is_own(self) -> bool:
        """True if it is this process' own root."""
        return self._folder == Path("/")

    def at(self, path: str) -> Path:
        if self.is_own:
            return Path(path)
        left = list(PurePosixPath(path).parts)
        current = self._folder
        links = 0
        while left:
            part = left.pop(0)
            if part in ("/", ".."):
                current = self._folder if part == "/" or current == self._folder else current.parent
                continue
            target = _link(current / part)
            if target is None or links == _MOST_LINKS:
                current /= part
                continue
            links += 1
            left = [*PurePosixPath(target).parts, *left]
        return current

    def text(self, path: str) -> str | None:
        """What a file says; None if it cannot be read. Pipes and devices are not opened."""
        try:
            here = self.at(path)
            if not stat.S_ISREG(here.stat().st_mode):
                return None
            with here.open("rb") as stream:
                return stream.read(_MOST_BYTES).decode(errors="replace")
        except (OSError, ValueError):
            return None

    def exists(self, path: str) -> bool:
        return self.fact(path) is not None

    def fact(self, path: str) -> FileFact | None:
        """Owner, rights and kind of a file; None if it is not there or may not be seen."""
        try:
            status = self.at(path).stat()
        except (OSError, ValueError):
            return None
        mode = status.st_mode
        is_node = stat.S_ISCHR(mode)
        return FileFact(
            path=path,
            uid=status.st_uid,
            gid=status.st_gid,
            mode=stat.S_IMODE(mode),
            is_folder=stat.S_ISDIR(mode),
            device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if is_node else None,
        )

    def hides(self, folder: str) -> bool:
        return self.exists(folder) and not os.access(self.at(folder), os.X_OK)

    def names(self, folder: str, pattern: str = "*") -> tuple[str, ...]:
        """Paths in a folder that match, by name; none if it cannot be listed."""
        try:
            found = sorted(path.name for path in self.at(folder).glob(pattern))
        except (OSError, ValueError):
            return ()
        return tuple(f"{folder.rstrip('/')}/{name}" for name in found)

    def link(self, path: str) -> str:
        parent, _, name = path.rpartition("/")
        target = _link(self.at(parent or "/") / name)
        return (target or "").rpartition("/")[2]

    def existing(self, paths: tuple[str, ...]) -> Iterator[str]:
        return (path for path in paths if self.exists(path))


def _link(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except OSError:
        return None


_TIMEOUT_S = 2.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""An empty SETTINGS frame of HTTP/2: both sides begin with one."""
_FRAME_BYTES, _TYPE, _SETTINGS_TYPE = 9, 3, 4


def collect_socket(host: HostRoot, path: str, *, grpc: bool) -> SocketFact:
    """The state of a socket; one of gRPC has to greet as HTTP/2 does."""
    return SocketFact(path, _state(host.at(path), grpc=grpc))


def _state(path: Path, *, grpc: bool) -> SocketState:
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return SocketState.NO_SOCKET
    except PermissionError:
        return SocketState.DENIED
    except (OSError, ValueError):
        return SocketState.MISSING
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_TIMEOUT_S)
        try:
            client.connect(str(path))
            return SocketState.ANSWERS if not grpc or _greets(client) else SocketState.SILENT
        except TimeoutError:
            return SocketState.SILENT
        except PermissionError:
            return SocketState.DENIED
        except OSError as error:
            # A path that is too long for a socket was never listened on, either.
            refused = error.errno in (errno.ECONNREFUSED, errno.ENOENT, None)
            return SocketState.REFUSED if refused else SocketState.SILENT


def _greets(client: socket.socket) -> bool:
    client.sendall(_PREFACE + _SETTINGS)
    head = b""
    while len(head) < _FRAME_BYTES:
        part = client.recv(_FRAME_BYTES - len(head))
        if not part:
            return False
        head += part
    return head[_TYPE] == _SETTINGS_TYPE
