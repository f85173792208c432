"""Where sockets live under the kubelet's folder, and their files: names, leftovers, identity."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from gpuplugin.daemon.logs import log_fact

if TYPE_CHECKING:
    from collections.abc import Iterable

Identity: TypeAlias = tuple[int, int, int]
"""Device, inode and change time (ns) of a file: a file that was made anew differs."""

_PREFIX = "gpuplugin-"
_TOKEN_BYTES = 4
_SUFFIX = ".sock"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KubeletDirs:
    """The kubelet's folder, `/var/lib/kubelet` on most systems."""

    root: Path
    other_kubelet_socket: str | None = None

    @property
    def device_plugins(self) -> Path:
        """Sockets of plugins that register classically, and the kubelet's own."""
        return self.root / "device-plugins"

    @property
    def kubelet_socket(self) -> Path:
        """Where Register is called: kubelet.sock, or what the user named instead."""
        if self.other_kubelet_socket:
            return Path(self.other_kubelet_socket)
        return self.device_plugins / "kubelet.sock"

    @property
    def plugin_watcher(self) -> Path:
        """This plugin's own sub-directory of the folder that the kubelet's watcher reads."""
        return self.root / "plugins_registry" / "gpuplugin"

    def of(self, registration: Literal["watcher", "classic", "none"]) -> Path:
        """Where this plugin's sockets are, by its way of registration."""
        return self.device_plugins if registration == "classic" else self.plugin_watcher


def new_socket_path(folder: Path, resource: str) -> Path:
    """A path that was never used before.

    The kubelet's back-off belongs to a path, and gRPC unlinks by path when a server stops, so a
    name must not come back.
    """
    return folder / f"{_stem(resource)}{os.urandom(_TOKEN_BYTES).hex()}{_SUFFIX}"


def remove_leftovers(folder: Path, resource: str | None = None) -> tuple[Path, ...]:
    """Remove dead sockets of this plugin (of one resource) and return them; no folder has none.

    A dead socket would put its path into the kubelet's back-off, and removing it later would make
    the kubelet drop the resource, whichever plugin serves it by then. A socket that a
    process listens on is left alone: a plugin that is being replaced removes it itself.
    """
    removed = []
    for path in dead_sockets(folder, resource):
        try:
            path.unlink()
            removed.append(path)
        except FileNotFoundError:
            continue  # another process removed it meanwhile
        except OSError as error:
            text = f"the old socket {path} cannot be removed: {error}; remove it by hand"
            owner = folder.stat().st_uid
            log_fact(log, logging.WARNING, "leftover-stays", text, folder_owner_uid=owner)
    return tuple(removed)


def dead_sockets(folder: Path, resource: str | None = None) -> tuple[Path, ...]:
    """Sockets of this plugin (of one resource) that no process listens on."""
    return tuple(path for path in plugin_sockets(folder, resource) if not listened_on(path))


def others_serve(folders: Iterable[Path], resource: str, own: Path) -> bool:
    """True if another process serves the resource too, as while a plugin is being replaced."""
    return any(
        path != own and listened_on(path)
        for folder in folders
        for path in plugin_sockets(folder, resource)
    )


def _stem(resource: str) -> str:
    return f"{_PREFIX}{resource.replace('/', '-')}-"


def plugin_sockets(folder: Path, resource: str | None = None) -> list[Path]:
    """This plugin's sockets in a folder; those of one resource, if one is named."""
    stem = _PREFIX if resource is None else _stem(resource)
    length = None if resource is None else len(stem) + 2 * _TOKEN_BYTES + len(_SUFFIX)
    try:
        names = os.listdir(folder)  # noqa: PTH208 - read every second, and paths are slow
    except OSError:
        return []
    return [
        path
        for name in sorted(names)
        if name.startswith(stem) and name.endswith(_SUFFIX) and length in (None, len(name))
        if _is_socket(path := folder / name)
    ]


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:
        return False


def listened_on(path: Path) -> bool:
    """True if a process accepts connections at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        # Anything but 0 and EAGAIN (a full backlog) means that no process accepts there.
        return client.connect_ex(str(path)) in (0, errno.EAGAIN)


def remove_socket(path: Path) -> None:
    """Remove a socket that is no longer served; an error is logged, not raised."""
    try:
        path.unlink(missing_ok=True)
    except NotADirectoryError:
        return  # its folder was replaced by a file
    except OSError as error:
        text = f"the socket {path} cannot be removed: {error}"
        log_fact(log, logging.WARNING, "socket-stays", text)


def identity(path: Path) -> Identity | None:
    """The identity of a file, None if there is none, or none that may be read."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns
