"""Where sockets live under the kubelet's folder, and their files: names, leftovers, identity."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import socket
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from gpuplugin.daemon.logs import log_fact
from gpuplugin.rpc.services import SocketError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from gpuplugin.rpc.services import Engine, Server, Service

Identity: TypeAlias = tuple[int, int, int]
"""Device, inode and change time (ns) of a file: a file that was made anew differs."""

STOP_GRACE_S = 1.0

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

    def dra_driver(self, driver: str) -> Path:
        """A DRA driver's own folder, which has its sockets for calls and its file of claims."""
        return self.root / "plugins" / driver

    def of(self, registration: Literal["watcher", "classic", "none"]) -> Path:
        """Where this plugin's sockets are, by its way of registration."""
        return self.device_plugins if registration == "classic" else self.plugin_watcher


DRA_CALLS = "dra-*.sock"


def dra_registrations(driver: str) -> str:
    """The pattern of a DRA driver's registration sockets; each instance has one of its own."""
    return f"{driver}-*-reg.sock"


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
    try:
        names = os.listdir(folder)  # noqa: PTH208 - read every second, and paths are slow
    except OSError:
        return []
    return [
        path
        for name in sorted(names)
        if is_socket_name(name, resource)
        if _is_socket(path := folder / name)
    ]


def is_socket_name(name: str, resource: str | None) -> bool:
    stem = _PREFIX if resource is None else _stem(resource)
    length = None if resource is None else len(stem) + 2 * _TOKEN_BYTES + len(_SUFFIX)
    return name.startswith(stem) and name.endswith(_SUFFIX) and length in (None, len(name))


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


async def start_server(engine: Engine, path: Path, services: Sequence[Service]) -> Server:
    """Start serving in a thread; a cancellation meanwhile leaves no server behind.

    Raises `OSError` and `SocketError`.
    """
    starting = asyncio.ensure_future(asyncio.to_thread(engine.serve, path, services))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with suppress(OSError, SocketError):  # no server then, and the end of the task counts
            server = await starting
            await asyncio.to_thread(server.stop, STOP_GRACE_S)  # which removes the socket
        raise


async def stop_server(server: Server, path: Path, grace_s: float) -> None:
    """Stop in a thread, and remove the socket; a cancellation meanwhile waits for that."""
    stopping = asyncio.ensure_future(asyncio.to_thread(server.stop, grace_s))
    try:
        await asyncio.shield(stopping)
    except asyncio.CancelledError:
        await stopping
        raise
    finally:
        remove_socket(path)


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


class OtherPlugin:
    """Whether another plugin serves the resource too, as during a rolling update.

    The kubelet knows plugins by resource alone. If the one that stops was the registered one, the
    kubelet has none from then on, while the stream of the other one stays open.
    """

    def __init__(
        self, dirs: KubeletDirs, resource: str, own: Path, own_names: Container[str], grace_s: float
    ) -> None:
        """`own_names` has old sockets of this plugin, too: changes of them are still told of."""
        self._own_names = own_names
        self._grace_s = grace_s
        self.folders = (dirs.plugin_watcher, dirs.device_plugins)
        self._resource = resource
        self._own = own
        self._seen_at_s = math.inf
        self.present = False

    def noticed(self, name: str) -> None:
        """Something happened to this file; a socket may be gone already."""
        if name not in self._own_names and is_socket_name(name, self._resource):
            self._seen_at_s = time.monotonic()

    def check(self) -> None:
        self.present = others_serve(self.folders, self._resource, self._own)
        if self.present:
            self._seen_at_s = time.monotonic()

    @property
    def seen(self) -> bool:
        """True if there is one, or was one until now: its end changes no folder."""
        return self._seen_at_s < math.inf

    @property
    def is_leaving(self) -> bool:
        """True if there was one at the last check but one, and is none now."""
        return not self.present and self._seen_at_s < math.inf

    @property
    def has_left(self) -> bool:
        """True if there was one, and is none for longer than it takes to renew its socket."""
        return time.monotonic() - self._seen_at_s > self._grace_s
