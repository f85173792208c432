"""The driver's files that a container needs: libraries, programs, sockets. Found, not loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hal.nvml.library import LIBRARY_DIRS

if TYPE_CHECKING:
    from collections.abc import Iterator

_VERSIONED = re.compile(r"libcuda\.so\.(\d+\.\d+(?:\.\d+)?)")
_PROGRAM_DIRS = ("usr/bin", "bin", "opt/bin", "usr/local/bin", "usr/local/nvidia/bin")
_PROGRAMS = (
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
)
_SOCKETS = ("run/nvidia-persistenced/socket", "run/nvidia-fabricmanager/socket")


@dataclass(frozen=True, slots=True)
class DriverFiles:
    """Paths below the driver's root, without a leading slash.

    `libraries` maps each file to its other names in the same folder (`libcuda.so.1`), which a
    container without a linker cache of its own needs too.
    """

    version: str = ""
    libraries: tuple[tuple[str, tuple[str, ...]], ...] = ()
    programs: tuple[str, ...] = ()
    sockets: tuple[str, ...] = ()

    @property
    def library_folders(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(Path(path).parent) for path, _ in self.libraries))


def find_driver_files(root: Path) -> DriverFiles:
    """The driver's files below `root`, by the version in the name of libcuda; may be empty.

    Of several versions, as an update leaves them, it is the one that libcuda.so.1 leads to.
    """
    for folder in LIBRARY_DIRS:
        version = _version(root / folder)
        if version:
            return DriverFiles(
                version=version,
                libraries=tuple(_libraries(root, folder, version)),
                programs=tuple(_first_of_each(root)),
                sockets=tuple(path for path in _SOCKETS if (root / path).is_socket()),
            )
    return DriverFiles()


def _version(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("libcuda.so.*"))
    versions = {name: match[1] for name in names if (match := _VERSIONED.fullmatch(name))}
    in_use = (folder / "libcuda.so.1").resolve().name
    return versions.get(in_use) or next(iter(versions.values()), "")


def _libraries(root: Path, folder: str, version: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for path in sorted((root / folder).glob(f"lib*.so.{version}")):
        stem = path.name.removesuffix(f".{version}")
        names = sorted(
            other.name
            for other in path.parent.glob(f"{stem}*")
            if other.is_symlink() and other.resolve().name == path.name
        )
        yield f"{folder}/{path.name}", tuple(f"{folder}/{name}" for name in names)


def _first_of_each(root: Path) -> Iterator[str]:
    for program in _PROGRAMS:
        for folder in _PROGRAM_DIRS:
            if (root / folder / program).is_file():
                yield f"{folder}/{program}"
                break
