"""A progress bar on a terminal, for what takes longer than a moment."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AFTER_S = 1.0
"""What is done sooner needs no bar."""


@contextmanager
def progress_bar(title: str, *, shown: bool) -> Iterator[Callable[[float], None]]:
    """A function that is to be told the share (0 to 1) that is done.

    The bar goes to standard error, and away in the end. Without a terminal, or without rich,
    nothing is drawn.
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

    def tell(share: float) -> None:
        if time.monotonic() - started_s >= AFTER_S:
            bar.start()
        bar.update(task, completed=share)

    try:
        yield tell
    finally:
        bar.stop()
