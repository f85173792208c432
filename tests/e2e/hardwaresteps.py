"""Steps that go wrong, for the tests of how `make hardware` runs steps."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tools.hardware.step import Failed, Found, Skipped

if TYPE_CHECKING:
    from tools.hardware.step import Context

PIDS = "HARDWARE_STEPS_PIDS"
"""The variable with the file to which `hangs` writes the process that it leaves behind."""


def driver(_context: Context) -> Found:
    return Found("a library", {"simulated": True})


def crashes(_context: Context) -> Found:
    raise ZeroDivisionError("this is a bug")


def fails(_context: Context) -> Found:
    raise Failed("two things are wrong", {"problems": ["one", "two"]})


def skips(_context: Context) -> Found:
    raise Skipped("not on this machine")


def hangs(_context: Context) -> Found:
    """Leave a process behind that has no parent and a session of its own, and hang."""
    script = "sleep 300 & echo $! > $0"
    subprocess.run(["setsid", "sh", "-c", script, os.environ[PIDS]], check=True)
    threading.Event().wait()
    return Found("never")


def works(context: Context) -> Found:
    return Found(f"in {context.folder} of {Path.home()}")
