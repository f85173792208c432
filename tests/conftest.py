"""In which order processes collect and run tests; figures that tests record, shown at the end."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST = ("chaos", "e2e", "component", "deploy", "conformance")
"""Folders below this one; the others have many short tests, which fill up what is left."""
HERE = Path(__file__).parent
MEMORY = Path("/dev/shm")
ROOM_BYTES = 2 << 30
"""More than tests need. A container has 64 MiB there unless it was given more: too little."""


@pytest.fixture
def usual_recursion_limit() -> Iterator[None]:
    """Python's own, whatever a library has set: what is too deep for a parser depends on it."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


def pytest_configure() -> None:
    # A shell ignores it for what it starts in the background, and programs would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _use_memory()


def _use_memory() -> None:
    """Have temporary files in memory, if it has room: on a disk the system is busy with them.

    The suite of the backends alone took 19.6 s of system time with /tmp on ext4, and 2.0 s so.
    """
    if "TMPDIR" in os.environ or not MEMORY.is_dir():
        return
    about = os.statvfs(MEMORY)
    has_room = about.f_bavail * about.f_frsize > ROOM_BYTES
    if has_room and not about.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None


def _files() -> list[Path]:
    """All files of tests, in the order in which they run."""
    order = {name: place for place, name in enumerate(LONGEST)}
    return sorted(
        HERE.rglob("test_*.py"),
        key=lambda file: (order.get(file.relative_to(HERE).parts[0], len(order)), file),
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Each process begins with another file where all are to be collected.

    A module is compiled by whoever comes first: in a fresh clone all processes would compile all
    of them. Nothing that is collected is garbage, so nobody looks for it meanwhile.
    """
    gc.disable()
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and [Path(one) for one in session.config.args] == [HERE]:
        files = [str(file) for file in _files()]
        count = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        first = int(worker.removeprefix("gw")) * len(files) // count
        session.config.args = files[first:] + files[:first]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """No process may be left alone with a long file when the others have ended."""
    order = {file: place for place, file in enumerate(_files())}
    items.sort(key=lambda item: order.get(item.path, 0))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")
