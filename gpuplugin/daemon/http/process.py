"""Metrics of this process and its interpreter, with the names that all exporters use."""

from __future__ import annotations

import gc
import os
import platform
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.daemon.http.textformat import Family

if TYPE_CHECKING:
    from collections.abc import Iterator

_PAGE_BYTES = resource.getpagesize()
_TICKS = os.sysconf("SC_CLK_TCK")


def process_families(proc: Path = Path("/proc")) -> Iterator[Family]:
    """What /proc says of this process; what cannot be read is left out."""
    own = proc / "self"
    try:
        # The name of the program, in brackets, may have spaces and brackets of its own.
        fields = (own / "stat").read_text(errors="replace").rpartition(")")[2].split()
        descriptors = len(os.listdir(own / "fd"))  # noqa: PTH208 - a list of names is enough
    except OSError:
        return
    user, system, started, virtual, resident = (int(fields[at]) for at in (11, 12, 19, 20, 21))
    booted_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    cpu = "Total user and system CPU time spent in seconds."
    yield _one(Family("process_cpu_seconds", cpu, "counter"), (user + system) / _TICKS)
    for name, text, value in (
        ("virtual_memory_bytes", "Virtual memory size in bytes.", virtual),
        ("resident_memory_bytes", "Resident memory size in bytes.", resident * _PAGE_BYTES),
        (
            "start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            booted_s + started / _TICKS,
        ),
        ("open_fds", "Number of open file descriptors.", descriptors),
        ("max_fds", "Maximum number of open file descriptors.", limit),
    ):
        yield _one(Family(f"process_{name}", text), value)


def python_families() -> Iterator[Family]:
    major, minor, patch = platform.python_version_tuple()
    info = Family("python_info", "Python platform information")
    info.add(
        1,
        {
            "implementation": platform.python_implementation(),
            "version": platform.python_version(),
            "major": major,
            "minor": minor,
            "patchlevel": patch,
        },
    )
    yield info
    for key, text in (
        ("collected", "Objects collected during gc"),
        ("uncollectable", "Uncollectable objects found during GC"),
        ("collections", "Number of times this generation was collected"),
    ):
        name = "python_gc_collections" if key == "collections" else f"python_gc_objects_{key}"
        family = Family(name, text, "counter")
        for generation, stats in enumerate(gc.get_stats()):
            family.add(stats[key], {"generation": str(generation)})
        yield family


def _one(family: Family, value: float) -> Family:
    family.add(value)
    return family
