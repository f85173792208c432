"""Text for terminals and pipes: tables, sizes, a progress bar, what is not installed."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from gpuplugin.version import VERSION
from hal.types import GIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def fail(error: Exception | str) -> int:
    print(f"gpuplugin: {error}", file=sys.stderr)
    return 1


class SimulatorMissing(Exception):
    """What is wanted is in the distribution gpuplugin-sim, which is not installed."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} needs the simulator, which is not installed: "
            f"pip install gpuplugin-sim=={VERSION}, or use the image whose tag ends in -sim"
        )


@contextmanager
def needs_simulator(what: str) -> Iterator[None]:
    """Imports from the simulator; `what` is the command or option that needs them.

    Raises:
        SimulatorMissing: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"benchmarks", "sim"}:
            raise SimulatorMissing(what) from error
        raise


def gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"


def terminal() -> tuple[int | None, bool]:
    """The width of the terminal (None: there is none, so nothing is wrapped), and colour or not."""
    if not sys.stdout.isatty():
        return None, False
    colour = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return shutil.get_terminal_size().columns, colour


WATCH_S = 2.0


def watched(show: Callable[[], tuple[int, str]], every_s: float) -> int:
    """Print what `show` returns, and its status; again and again until Ctrl-C if `every_s`."""
    status = 0
    try:
        while True:
            status, text = show()
            if every_s and sys.stdout.isatty():
                print("\x1b[H\x1b[2J\x1b[3J", end="")
            if text:
                print(text, flush=True)
            if not every_s:
                return status
            time.sleep(every_s)
    except KeyboardInterrupt:
        if not every_s:
            raise
        return status


@contextmanager
def output_file(path: str | Path) -> Iterator[TextIO]:
    """A file to write that is there when all of it is, and not at all if that fails.

    A pipe or device is written as it is.

    Raises:
        OSError: it cannot be written; at once, if its folder cannot.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        with target.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
        return
    target = target.resolve()
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("x", encoding="utf-8", newline="\n") as stream:
            yield stream
        part.replace(target)
    except OSError as error:
        if error.filename == str(part):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        part.unlink(missing_ok=True)


AFTER_S = 1.0
"""Work that is done sooner shows no bar."""


@contextmanager
def progress_bar(title: str, *, shown: bool) -> Iterator[Callable[[float], None]]:
    """Yields a function that takes the share (0 to 1) that is done.

    The bar is on standard error and disappears at the end. Without a terminal, or without rich,
    there is none.
    """
    if not (shown and sys.stderr.isatty()):
        yield lambda _share: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError:
        yield lambda _share: None
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(title, total=1.0)
    started_s = time.monotonic()

    def update(share: float) -> None:
        if time.monotonic() - started_s >= AFTER_S:
            bar.start()
        bar.update(task, completed=share)

    try:
        yield update
    finally:
        bar.stop()
