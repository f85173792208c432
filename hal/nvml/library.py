"""Finding and loading the driver's library, `libnvidia-ml.so.1`, under a driver root.

What is called in the library once it is loaded is in `hal.nvml.api`, not here.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hal.errors import DriverNotFound

if TYPE_CHECKING:
    from collections.abc import Callable

LIBRARY: Final = "libnvidia-ml.so.1"

LIBRARY_DIRS: Final = (
    "usr/lib64",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "lib64",
    "lib/x86_64-linux-gnu",
    "lib/aarch64-linux-gnu",
    "opt/nvidia/lib64",
    "usr/local/nvidia/lib64",
    "usr/local/glibc/usr/lib",
    "usr/local/lib",
    "usr/lib",
    "lib",
)
"""Folders under a driver root, in the order in which they are searched.

The last ones are those of Talos (up to 1.12, and from 1.13 on), and of distributions that have
nothing of 32 bits, among them NixOS and WSL, with roots such as /run/opengl-driver.
"""

REMEDY: Final = (
    "Install the NVIDIA driver on the node. In Kubernetes, give this container the driver: set "
    "runtimeClassName to the RuntimeClass 'nvidia', or mount the driver and set its location: "
    "--driver-root (NVIDIA_DRIVER_ROOT) is its path on the host, --driver-root-ctr-path "
    "(DRIVER_ROOT_CTR_PATH) is where that path is mounted in this container"
)


_MAPS: Final = Path("/proc/self/maps")


@dataclass(frozen=True, slots=True)
class LibraryFile:
    """The file that the library was loaded from: a process keeps it until it ends."""

    path: Path
    _device: int
    _inode: int

    @classmethod
    def at(cls, path: Path) -> LibraryFile:
        """Raises `OSError` if there is no such file."""
        found = path.stat()
        return cls(path, found.st_dev, found.st_ino)

    @classmethod
    def loaded(cls) -> LibraryFile | None:
        """The file that the loader found by itself; None if that cannot be told."""
        with suppress(OSError):
            for line in _MAPS.read_text().splitlines():
                _, _, path = line.partition("/")
                if LIBRARY.removesuffix(".1") in path.rpartition("/")[2]:
                    return cls.at(Path("/" + path))
        return None

    def was_replaced(self) -> bool:
        """True if it was removed, or another one is in its place.

        A file that is mounted by itself, as container runtimes do it, has no name left then.
        """
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return not now.st_nlink or (now.st_dev, now.st_ino) != (self._device, self._inode)


def _dlopen(name: str) -> None:
    ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)


def _why_not(path: Path, err: OSError) -> str:
    try:
        if path.exists():
            return f"{path} (it exists but cannot be loaded: {err})"
        if path.is_symlink():
            # As with a driver that is mounted only in part.
            return f"{path} (a link to {path.readlink()}, which is missing)"
    except PermissionError:
        return f"{path} (this user may not read it)"
    return str(path)


def load_library(driver_root: Path, dlopen: Callable[[str], None] = _dlopen) -> Path | None:
    """Load NVML from `driver_root`, or else from wherever the dynamic loader finds it.

    A library loaded by its full path also serves later requests for its soname, so the Python
    binding, which loads it by the plain name, gets the same one.

    Returns the file that was loaded, None if the loader found one by itself. Raises DriverNotFound
    with each place that was searched, and the loader's error for a file that it refused.
    """
    searched: list[str] = []
    for folder in LIBRARY_DIRS:
        path = driver_root / folder / LIBRARY
        try:
            dlopen(str(path))
        except OSError as err:
            searched.append(_why_not(path, err))
        else:
            return path
    try:
        dlopen(LIBRARY)
    except OSError as err:
        searched.append(f"the loader's own search path ({err})")
        raise DriverNotFound(LIBRARY, searched, REMEDY) from err
    return None
