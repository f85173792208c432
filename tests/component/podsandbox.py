"""Containers that mount what pods with simulated GPUs get: other roots, no network, UID 65534."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pynvml
import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

DEADLINE_S = 30.0
_IS_ROOT = os.getuid() == 0
USER = "65534"
ALONE = (
    # Of root there is nothing left outside either, so that mode bits count.
    *(("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups") if _IS_ROOT else ()),
    *("bwrap", "--unshare-all", "--die-with-parent", "--uid", USER, "--gid", USER),
    *("--dev", "/dev", "--proc", "/proc", "--clearenv"),
)
PYTHON = "/usr/bin/python3"


def require_bubblewrap() -> None:
    """Skip the test where there can be no container, and say why."""
    for name, package in (("bwrap", "bubblewrap"), ("setpriv", "util-linux")):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed (Debian: {package})")
    tried = subprocess.run(
        [*ALONE, "--ro-bind", "/", "/", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        pytest.skip(f"no container for an ordinary user here: {tried.stderr.strip()}")


def busybox_root() -> tuple[str, ...]:
    """A root with nothing but busybox; skips the test where there is no static one."""
    busybox = shutil.which("busybox")
    if busybox is None or b"/ld-linux" in Path(busybox).read_bytes()[:4096]:
        pytest.skip("no static busybox is installed (Debian: busybox-static)")
    return ("--ro-bind", busybox, "/bin/busybox", "--symlink", "busybox", "/bin/sh")


def debian_root() -> tuple[str, ...]:
    """This machine's libraries, its own Python, and NVIDIA's binding of NVML."""
    if not Path(PYTHON).exists():
        pytest.skip(f"there is no {PYTHON} (Debian: python3)")
    words: list[str] = []
    for name in ("lib", "lib64"):
        for folder in (Path("/usr", name), Path("/", name)):
            if folder.is_symlink():
                words += ("--symlink", str(folder.readlink()), str(folder))
            elif folder.is_dir():
                words += ("--ro-bind", str(folder), str(folder))
    words += ("--ro-bind", str(Path(PYTHON).resolve()), PYTHON)
    words += ("--ro-bind", pynvml.__file__, "/nvml/pynvml.py")
    return tuple(words)


@dataclass(frozen=True, slots=True)
class Container:
    """A container with this root, mounts and environment."""

    root: tuple[str, ...]
    mounts: Mapping[str, str]
    """Host paths by container path, read-only."""
    environment: Mapping[str, str]

    def command(self, *words: str) -> list[str]:
        mounts = [word for at, of in self.mounts.items() for word in ("--ro-bind", of, at)]
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", **self.environment}
        given = [word for pair in environment.items() for word in ("--setenv", *pair)]
        return [*ALONE, *self.root, *mounts, *given, *words]

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Its standard input and output are pipes."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command(*words), stdin=pipe, stdout=pipe, text=True)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
