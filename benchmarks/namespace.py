"""A private mount namespace in which a folder of ours stands at the kubelet's fixed place.

Mounts made there end with the last process in it, so nothing of the host changes, whatever
happens to the programs. Needs root, and `unshare` and `mount` of util-linux.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_KUBELET_DIR = Path("/var/lib/kubelet")

_SCRIPT = """
set -eu
dir=$1 target=$2 hold=$3
shift 3
if [ ! -d "$target" ]; then
    base=$target
    while [ ! -d "$base" ]; do base=$(dirname "$base"); done
    mount --rbind "$base" "$hold"
    mount -t tmpfs none "$base"
    for entry in "$hold"/* "$hold"/.[!.]*; do
        name=$base/${entry##*/}
        if [ -L "$entry" ]; then
            cp -P "$entry" "$name"
        elif [ -d "$entry" ]; then
            mkdir "$name"
            mount --rbind "$entry" "$name"
        elif [ -e "$entry" ]; then
            : >"$name"
            mount --bind "$entry" "$name"
        fi
    done
    mkdir -p "$target"
fi
mount --bind "$dir" "$target"
exec "$@"
"""
"""A target that the host lacks is made on a tmpfs over its nearest folder, whose other entries are
mounted back into it."""


class NoNamespace(Exception):
    """A private mount namespace cannot be had; the text says why."""


def check_namespaces() -> None:
    """See that private mount namespaces can be had here.

    Raises:
        NoNamespace: not root, no util-linux, or forbidden as in most containers.
    """
    if os.geteuid() != 0:
        raise NoNamespace("a private mount namespace needs root: run this as root")
    command = [*_UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoNamespace(f"a private mount namespace needs unshare and mount: {error}") from error
    if done.returncode:
        reason = done.stderr.strip() or f"exit status {done.returncode}"
        raise NoNamespace(f"private mount namespaces are not allowed here: {reason}")


def with_private_kubelet_dir(
    command: Sequence[str], folder: Path, hold: Path, target: Path = DEFAULT_KUBELET_DIR
) -> list[str]:
    """The command so that it finds `folder` at `target`; `hold` is an empty folder to work with."""
    return [*_UNSHARE, "sh", "-c", _SCRIPT, "sh", str(folder), str(target), str(hold), *command]


_UNSHARE = ("unshare", "--mount", "--propagation", "private")
