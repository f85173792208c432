"""Runs a step in a process of its own and holds its limit.

All processes are below the one that calls `adopt_orphans` and `run_step`: what a step leaves behind
when it ends, or when its time is over, is killed. Calls to the driver are made in those processes
alone, so a driver that hangs costs the step and no more.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from gpuplugin.cli.backends import BackendError
from hal import HalError
from sim.calibrate.processes import descendants, end_with_parent, kill
from tools.hardware.report import Result
from tools.hardware.step import LAST_LINES, ROOT, Context, Failed, Found, Skipped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class Step:
    """A function of a module, and the most that it may take."""

    run: Callable[[Context], Found]
    limit_s: float

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def place(self) -> str:
        """How another process finds the function."""
        return f"{self.run.__module__}:{self.name}"


def run_step(
    step: Step, limit_s: float, context: Context, environment: Mapping[str, str]
) -> Result:
    """The step in a process of its own, until it ends or its time is over."""
    folder = context.folder / step.name
    folder.mkdir()
    log = folder / "log"
    others = descendants()
    command = [
        *(sys.executable, "-m", "tools.hardware", "--step", step.place, "--folder", str(folder)),
        *("--idle", str(context.idle_s), *(["--simulated"] if context.simulated else [])),
    ]
    began_s = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment,
            cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(max(0.0, limit_s))
            text = f"the step ended with {process.returncode} and without a result"
        except subprocess.TimeoutExpired:
            text = f"not done after {limit_s:.0f} s: killed"
    took_s = time.monotonic() - began_s
    stuck = kill(descendants() - others)
    process.poll()
    try:
        found = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        problems = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        found = {"verdict": "failed", "text": text, "data": {"problems": problems}}
    if stuck:
        found["verdict"] = "failed"
        found["text"] += (
            f"; {len(stuck)} of its processes cannot be killed: they hang in the kernel"
        )
    return Result(step.name, found["verdict"], found["text"], round(took_s, 1), found["data"])


def run_here(place: str, context: Context) -> None:
    """A step in this process; its result becomes a file in its folder."""
    end_with_parent()
    module, _, name = place.partition(":")
    step: Callable[[Context], Found] = getattr(import_module(module), name)
    try:
        found = step(context)
        result = {"verdict": "ok", "text": found.text, "data": found.data}
    except Skipped as reason:
        result = {"verdict": "skipped", "text": str(reason), "data": {}}
    except Failed as error:
        result = {"verdict": "failed", "text": str(error), "data": error.data}
    except (HalError, BackendError) as error:
        result = {"verdict": "failed", "text": str(error), "data": {}}
    (context.folder / "result.json").write_text(json.dumps(result))
