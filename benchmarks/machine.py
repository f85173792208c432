"""Read from the kernel and the interpreter: the machine, what processes use, and counts.

Counts (bytecode instructions, blocks of memory, modules) are the same on every machine: they stand
in for time where a check must not depend on who else uses the machine.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
import tracemalloc
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.results import Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from _typeshed import TraceFunction

_LIBRARIES = ("gpuplugin", "grpcio", "protobuf", "hpack", "pydantic", "simpy")
_CPU_CLOCK = 2
"""CPUCLOCK_SCHED (Linux, include/linux/posix-timers.h): the clock of a whole process."""

PROC = Path("/proc")


def this_machine(load_before: float | None = None) -> Machine:
    """The machine, and its load before a run (None: now) and now."""
    load = os.getloadavg()[0]
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        python=platform.python_version(),
        libraries={name: _version(name) for name in _LIBRARIES},
        load=(load if load_before is None else load_before, load),
    )


def processes_of(group: int) -> list[int]:
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


def instructions(function: Callable[[], object]) -> int:
    """Bytecode instructions that a call of `function` runs, in all Python code below it.

    It is called once before, for what only the first call does. Work inside C functions is not
    seen. The number depends on the version of Python.
    """
    count = 0

    def trace(frame: FrameType, event: str, _argument: object) -> TraceFunction | None:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    function()
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def kept_bytes(function: Callable[[], object], calls: int) -> int:
    """What is still allocated after so many calls, more than after as many before them."""
    for _ in range(calls):
        function()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(calls):
            function()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return after - before


def peak_bytes(function: Callable[[], object]) -> int:
    """The most that one call has allocated at a time."""
    function()
    tracemalloc.start()
    try:
        function()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak


def loaded_modules(imports: Sequence[str]) -> frozenset[str]:
    """The modules that a process of its own has loaded when it has imported these."""
    script = f"import sys, {', '.join(imports)}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return frozenset(done.stdout.split())
