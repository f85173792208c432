"""`gpuplugin calibrate`: measure on a GPU what the simulator needs, and write it to a file."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import yaml
from pydantic import ValidationError

from gpuplugin.cli.text import fail, output_file, table
from hal import TimeSliceLevel
from sim.calibrate.analysis import CannotTell
from sim.calibrate.children import ChildFailed
from sim.calibrate.comparison import compared
from sim.calibrate.cuda import MISSING, has_bindings
from sim.calibrate.edges import EdgeError
from sim.calibrate.measure import Evidence, Plan, calibration_of, measure
from sim.calibrate.mps import mps_share
from sim.calibrate.processes import adopt_orphans
from sim.study.sentences import number

if TYPE_CHECKING:
    import argparse

    from sim.calibrate.comparison import Compared
    from sim.gpu.calibration import Calibration

MEASURE_S = 70.0
"""Without hindrance 10 s, and 30 s with levels."""
TOTAL_S = 110.0
"""With a command for MPS: under two minutes, with what it takes to end."""


def calibrate(parsed: argparse.Namespace) -> int:
    """Measure, write the file, and print how far the shipped numbers were off; 1 if it cannot."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    adopt_orphans()
    try:
        return _calibrate(parsed)
    except (EdgeError, ChildFailed, CannotTell) as error:
        return fail(f"cannot calibrate: {error}")
    except OSError as error:
        return fail(f"{error.filename} cannot be written: {error.strerror or error}")


def _calibrate(parsed: argparse.Namespace) -> int:
    with ExitStack() as stack:
        # What cannot be written is told before it is measured.
        output = _opened(parsed.output, stack)
        with ExitStack() as kept:  # whole whatever is concluded from it
            stamps = _opened(parsed.stamps, kept)
            evidence, until_s = _evidence(parsed)
            if stamps is not None:
                stamps.write(evidence.model_dump_json(indent=1) + "\n")
        calibration = calibration_of(evidence)
        problem = ""
        if parsed.mps_command is not None:
            _tell("running the command alone, then twice at once by MPS")
            try:
                share = mps_share(parsed.mps_command, evidence.target.uuid, until_s, os.environ)
                calibration = calibration.model_copy(update={"mps": share})
            except (EdgeError, ChildFailed) as error:
                problem = f"the MPS share was not measured: {error}"
        if output is not None:
            output.write(as_yaml(calibration))
    rows = compared(calibration)
    if parsed.json:
        found = calibration.model_dump(mode="json", exclude_none=True)
        print(json.dumps({**found, "compared": [row.as_data() for row in rows]}, indent=2))
    elif parsed.output is not None:
        print("\n".join(as_text(calibration, rows, parsed.output)))
    else:
        print(as_yaml(calibration), end="")
    return fail(problem) if problem else 0


def _opened(path: str | None, stack: ExitStack) -> TextIO | None:
    return None if path is None else stack.enter_context(output_file(path))


def _evidence(parsed: argparse.Namespace) -> tuple[Evidence, float]:
    """What was measured, and until when more may be (of `time.monotonic`)."""
    began_s = time.monotonic()
    if parsed.source is not None:
        try:
            text = Path(parsed.source).read_text("utf-8")
            return Evidence.model_validate_json(text), began_s + TOTAL_S
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            raise EdgeError(f"{parsed.source} has no stamps: {error}") from error
    if not has_bindings():
        raise EdgeError(MISSING)
    plan = Plan(
        until_s=began_s + MEASURE_S,
        gpu=parsed.gpu,
        levels=parsed.levels,
        restored=TimeSliceLevel[parsed.restore.upper()],
    )
    return measure(plan, _tell), began_s + TOTAL_S


def _tell(doing: str) -> None:
    print(f"gpuplugin: {doing}", file=sys.stderr)


def as_yaml(calibration: Calibration) -> str:
    data = calibration.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return (
        f"# How this {calibration.product} shares its time, as 'gpuplugin calibrate' measured it.\n"
        "# For --calibration of sim share, sim run, sim up, sim sweep and advise.\n"
        + yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=99)
    )


def as_text(calibration: Calibration, rows: list[Compared], path: str) -> list[str]:
    header = ("", "MEASURED", "HALF OF THEM", "SHIPPED", "SHIPPED IS OFF BY")
    cells = [
        (
            row.what,
            number(row.measured),
            "-"
            if row.low is None or row.high is None
            else f"{number(row.low)} to {number(row.high)}",
            f"{number(row.shipped)}{' (assumed)' if row.assumed else ''}",
            f"{row.off:+.1%}".replace("%", " %") if row.off is not None else "-",
        )
        for row in rows
    ]
    notes = list(calibration.notes)
    if calibration.other_work > 0.01:
        notes.append(f"Other work had the GPU for {calibration.other_work:.0%} of the time.")
    if calibration.lost_stamps:
        notes.append(f"{calibration.lost_stamps} stamps were lost.")
    what = f"{calibration.product}, driver {calibration.driver_version}"
    use = f"gpuplugin sim share --model {calibration.model} --calibration {path}"
    return [
        f"{what}, measured on {calibration.measured_on}; shipped: {calibration.model}",
        "",
        *table(header, cells),
        "",
        *notes,
        f"wrote {path}. Use it:",
        f"  {use} --clients 2,4,8 --busy-ms 15 --idle-ms 85",
    ]
