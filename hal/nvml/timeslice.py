"""Setting a GPU's time slice, for which NVML has no public call: `nvidia-smi` does it."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from hal.errors import NotSupported

if TYPE_CHECKING:
    from pathlib import Path

    from hal.types import TimeSliceLevel

_PROGRAM: Final = "nvidia-smi"
_DIRS: Final = ("usr/bin", "bin", "opt/bin", "usr/local/bin")
_TIMEOUT_S: Final = 30.0
_REMEDY: Final = "Time-slice levels need a Turing to Blackwell GPU without MIG, and CAP_SYS_ADMIN"


def find_nvidia_smi(driver_root: Path) -> str:
    """`nvidia-smi` under the driver root, or else on the PATH; raises `NotSupported`."""
    paths = [driver_root / folder / _PROGRAM for folder in _DIRS]
    for path in paths:
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    found = shutil.which(_PROGRAM)
    if found is None:
        searched = ", ".join(map(str, paths))
        raise NotSupported(
            f"{_PROGRAM}, which sets time slices, was not found; searched: {searched}, PATH",
            "Mount the driver's programs into this container, or leave the time slice alone",
        )
    return found


def set_time_slice(
    driver_root: Path,
    library: Path | None,
    uuid: str,
    level: TimeSliceLevel,
    timeout_s: float = _TIMEOUT_S,
) -> None:
    """`library` is the NVML to use, if known; raises `NotSupported` with the program's output."""
    command = [
        find_nvidia_smi(driver_root),
        "compute-policy",
        "-i",
        uuid,
        f"--set-timeslice={int(level)}",
    ]
    env = dict(os.environ)
    if library is not None:
        paths = (str(library.parent), env.get("LD_LIBRARY_PATH", ""))
        env["LD_LIBRARY_PATH"] = ":".join(filter(None, paths))
    doing = f"Setting the time slice of GPU {uuid} to {level.name.lower()}"
    try:
        done = subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as err:
        raise NotSupported(
            f"{doing} failed: {command[0]} did not end within {timeout_s:g} s", _REMEDY
        ) from err
    except OSError as err:
        raise NotSupported(f"{doing} failed: {command[0]} did not start: {err}", _REMEDY) from err
    if done.returncode != 0:
        output = " ".join(done.stdout.split()) or "(it printed nothing)"
        raise NotSupported(
            f"{doing} failed: {command[0]} exited with {done.returncode}: {output}", _REMEDY
        )
