"""A real browser without a window."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browse(url: str, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page and print its DOM; the test is skipped where there is no browser."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser here: looked for {', '.join(BROWSERS)}")
    return subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *("--disable-background-networking", "--disable-component-update", "--no-first-run"),
            *(f"--user-data-dir={profile}", *options, "--dump-dom", url),
        ],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )


def complaints(page: subprocess.CompletedProcess[str]) -> list[str]:
    """What a page complained of: a script's error, or a request that its policy forbids."""
    return [line for line in page.stderr.splitlines() if "CONSOLE" in line]
