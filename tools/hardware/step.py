"""What all steps have in common. A step returns what it found, or raises `Failed` or `Skipped`.

Each one runs in a process of its own, which `tools.hardware.__main__` ends at the step's limit.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.cli.backends import make_backend
from gpuplugin.config.load import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hal import Backend
    from tools.hardware.report import Data

ROOT = Path(__file__).parents[2]
LAST_LINES = 15


@dataclass(frozen=True, slots=True)
class Context:
    """`folder` is an empty one with a short path, for sockets; `idle_s` how long idle is."""

    folder: Path
    simulated: bool
    idle_s: float


@dataclass(frozen=True, slots=True)
class Found:
    """All is well: one line of text, and figures."""

    text: str
    data: Data = field(default_factory=dict)


class Failed(Exception):
    """Something is not as it must be; `data["problems"]` has a line for each thing."""

    def __init__(self, text: str, data: Data | None = None) -> None:
        super().__init__(text)
        self.data = data or {}


class Skipped(Exception):
    """It cannot be done on this machine; the text says why."""


def judged(text: str, problems: list[str], data: Data) -> Found:
    """Raises `Failed` with the first problem, if there is one."""
    if not problems:
        return Found(text, data)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise Failed(f"{problems[0]}{more}", {**data, "problems": problems})


def ended_badly(text: str, output: str) -> Failed:
    """The error with the last lines of the output of what ended."""
    return Failed(text, {"problems": output.splitlines()[-LAST_LINES:]})


def python_program(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` here until it ends; the step's limit is its time limit."""
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@contextmanager
def opened_backend() -> Iterator[Backend]:
    """The NVML backend with the plugin's variables (driver root and so on); raises `HalError`."""
    environment = {**os.environ, "GPUPLUGIN_BACKEND": "nvml"}
    settings = load_settings({}, environment, None).settings
    with make_backend(settings, control=False) as backend:
        backend.open()
        try:
            yield backend
        finally:
            backend.close()
