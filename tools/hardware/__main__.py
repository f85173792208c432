"""`make hardware`: one step after the other, each within its time, and a report of them."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.plugins import simulated_node
from benchmarks.servers import DidNotStart
from sim.calibrate.processes import adopt_orphans, descendants, kill
from tools.hardware import calibrate, daemon, load, node
from tools.hardware.report import Report, Result, as_data, as_json, as_text, line, names_here
from tools.hardware.run import Step, run_here, run_step
from tools.hardware.step import ROOT, Context

if TYPE_CHECKING:
    from collections.abc import Mapping

TOTAL_S = 540.0
"""Under ten minutes with what it takes to start, to kill and to write."""

STEPS = (
    Step(node.driver, 30),
    Step(node.conformance, 90),
    Step(daemon.plugin, 70),
    Step(daemon.doctor, 45),
    Step(node.record, 30),
    Step(load.load, 45),
    Step(calibrate.calibrate, 75),
    Step(node.calls, 45),
    Step(daemon.idle, 100),
)
"""The first one decides whether there is anything to measure."""

LONGEST_IDLE_S = 60.0

NO_DRIVER = """
This needs a machine with an NVIDIA driver and a GPU. If there is one, see that 'nvidia-smi' works,
and set NVIDIA_DRIVER_ROOT if the driver is not below /. Without one, rehearse on simulated GPUs:
  make hardware HARDWARE=--simulated"""


class Refused(Exception):
    """There is nothing to measure; the text says why and what to do."""


def main() -> int:
    options = _parsed()
    context = Context(options.folder or Path(), options.simulated is not None, options.idle)
    if options.step:
        run_here(options.step, context)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    adopt_orphans()
    try:
        with tempfile.TemporaryDirectory(prefix="gp") as folder:
            context = Context(Path(folder), context.simulated, context.idle_s)
            names = names_here({context.folder: "TMP", ROOT: "CHECKOUT"})
            report = _run(context, options.simulated)
            _write(report, names, options.output)
    except Refused as error:
        print(f"make hardware: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        kill(descendants())
    return 0 if report.passed else 1


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make hardware", description=__doc__)
    parser.add_argument(
        "--simulated",
        nargs="?",
        const="default",
        metavar="SCENARIO",
        help="rehearse on a simulated node (default scenario: default)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/hardware"),
        metavar="DIR",
        help="where the report goes (default build/hardware)",
    )
    parser.add_argument(
        "--idle",
        type=float,
        default=LONGEST_IDLE_S,
        metavar="S",
        help=f"how long the idle plugin is measured, at most {LONGEST_IDLE_S:g} (the default)",
    )
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not 0 < options.idle <= LONGEST_IDLE_S:
        parser.error(f"--idle is above 0 and at most {LONGEST_IDLE_S:g}, found {options.idle:g}")
    return options


def _run(context: Context, scenario: str | None) -> Report:
    """All steps, whatever comes of each; raises `Refused` if the first finds no driver."""
    began_s = time.monotonic()
    results: list[Result] = []
    with ExitStack() as stack:
        environment = _environment(context.folder / "n", scenario, stack)
        for step in STEPS:
            left_s = TOTAL_S - (time.monotonic() - began_s)
            result = run_step(step, min(step.limit_s, left_s), context, environment)
            if not results:
                _check_library(result, context.simulated)
            results.append(result)
            print(line(result), flush=True)
    return Report(context.simulated, time.monotonic() - began_s, tuple(results))


def _environment(folder: Path, scenario: str | None, stack: ExitStack) -> Mapping[str, str]:
    """What steps have in their environment, with a simulated node if there is a scenario."""
    if scenario is None:
        return os.environ
    try:
        simulated = stack.enter_context(simulated_node(folder, scenario))
    except DidNotStart as error:
        raise Refused(str(error)) from error
    if simulated.backend != "nvml":
        raise Refused("the simulated library cannot be built: install a C compiler (gcc)")
    return {**os.environ, **simulated.environment}


def _check_library(driver: Result, simulated: bool) -> None:
    """A rehearsal never counts as hardware, nor the other way round."""
    loaded = driver.data.get("simulated")
    if loaded is None:
        raise Refused(f"{driver.text}\n{NO_DRIVER}")
    if loaded and not simulated:
        raise Refused(
            "the NVML library that was loaded is the simulated one. Leave LD_LIBRARY_PATH as it "
            "was before 'gpuplugin sim env', or say --simulated"
        )
    if simulated and not loaded:
        raise Refused(
            "the NVML library that was loaded is a driver's, not the simulated one. Rehearse on a "
            "machine without a driver, or leave out --simulated"
        )


def _write(report: Report, names: Mapping[str, str], output: Path) -> None:
    kind = "simulated" if report.simulated else "hardware"
    output.mkdir(parents=True, exist_ok=True)
    text = as_text(report, names)
    (output / f"{kind}-report.json").write_text(as_json(as_data(report, names)))
    (output / f"{kind}-report.txt").write_text(text)
    print(f"\n{text}\nwrote {output}/{kind}-report.json and {kind}-report.txt")


if __name__ == "__main__":
    sys.exit(main())
