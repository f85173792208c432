"""What the kernel tells of the machine, and of what processes on it use."""

from __future__ import annotations

import os
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.results import Machine

_LIBRARIES = ("gpuplugin", "grpcio", "protobuf", "hpack", "pydantic", "simpy")
_CPU_CLOCK = 2
"""CPUCLOCK_SCHED (Linux, include/linux/posix-timers.h): the clock of a whole process."""

PROC = Path("/proc")


def this_machine() -> Machine:
    """The machine that this runs on."""
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        python=platform.python_version(),
        libraries={name: _version(name) for name in _LIBRARIES},
    )


def processes_of(group: int) -> list[int]:
    """The processes of a process group."""
    numbered = [folder for folder in PROC.iterdir() if folder.name.isdecimal()]
    return [int(folder.name) for folder in numbered if _group_of(folder) == group]


def resident_mib(pids: list[int]) -> float:
    """Resident memory in MiB; pages that processes share are counted for each."""
    total_kib = 0
    for pid in pids:
        try:
            status = (PROC / str(pid) / "status").read_text()
        except OSError:
            continue  # it has ended meanwhile
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        total_kib += int(found[1]) if found else 0
    return total_kib / 1024


def cpu_s(pids: list[int]) -> float:
    """Seconds of CPU that processes have used, to the nanosecond, of ended threads too."""
    total_ns = 0
    for pid in pids:
        try:
            # clock_getcpuclockid(3) makes the clock's number so; Python has no name for it.
            total_ns += time.clock_gettime_ns((~pid << 3) | _CPU_CLOCK)
        except OSError:
            continue  # it has ended meanwhile
    return total_ns / 1e9


def _group_of(folder: Path) -> int | None:
    try:
        stat = (folder / "stat").read_text()
    except OSError:
        return None
    # The name, in brackets, may have spaces and brackets of its own.
    return int(stat.rpartition(")")[2].split()[2])


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", (PROC / "cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
