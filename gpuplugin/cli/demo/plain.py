"""The demo as plain lines, for pipes and logs."""

from __future__ import annotations

import time
from typing import Self


class PlainView:
    """See `story.View`."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Nothing to put back."""

    def chapter(self, title: str, text: str) -> None:
        """Print the chapter's heading."""
        self._print(title)
        self._print(f"   {text}")

    def outcome(self, passed: bool, text: str) -> None:
        """Print what was checked."""
        self._print(f"   {'ok' if passed else 'NOT SO'}: {text}")

    def height(self) -> None:
        """Lines make no picture."""

    def _print(self, text: str) -> None:
        print(f"{time.monotonic() - self._started_s:5.1f} s  {text}", flush=True)
