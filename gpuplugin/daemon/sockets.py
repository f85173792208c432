"""Where sockets live under the kubelet's folder, and their files: names, leftovers, identity."""

from __future__ import annotations

import logging
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

Identity: TypeAlias = tuple[int, int, int]
"""Device, inode and change time (ns) of a file: a file that was made anew differs."""

_PREFIX = "gpuplugin-"

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
        """This plugin's own sub-directory of the folder that the kubelet's watcher looks at."""
        return self.root / "plugins_registry" / "gpuplugin"

    def of(self, registration: Literal["watcher", "classic", "none"]) -> Path:
        """Where this plugin's sockets are, by its way of registration."""
        return self.device_plugins if registration == "classic" else self.plugin_watcher


def new_socket_path(folder: Path, resource: str) -> Path:
    """A path that was never used before.

    The kubelet's back-off belongs to a path, and gRPC unlinks by path when a server stops, so a
    name must not come back.
    """
    stem = resource.replace("/", "-")
    return folder / f"{_PREFIX}{stem}-{secrets.token_hex(4)}.sock"


def remove_leftovers(folder: Path) -> tuple[Path, ...]:
    """Remove this plugin's sockets of earlier runs and return them; a missing folder has none.

    A dead socket would put its path into the kubelet's back-off, and removing it later would make
    the kubelet drop the resource, whichever plugin serves it by then.
    """
    removed = []
    for path in sorted(folder.glob(f"{_PREFIX}*.sock")):
        try:
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
                removed.append(path)
        except FileNotFoundError:
            continue  # somebody else removed it meanwhile, which is as good
        except OSError as error:
            log.warning(
                "the old socket %s cannot be removed: %s; remove it by hand",
                path,
                error,
                extra={"event": "leftover-stays", "owner_uid": path.stat().st_uid},
            )
    return tuple(removed)


def identity(path: Path) -> Identity | None:
    """The identity of a file, None if there is none."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns
