"""`gpuplugin sim sweep`: a scenario in every combination of settings, compared."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING

from gpuplugin.cli.text import fail, output_file, progress_bar, table
from sim.cli.options import add_calibration, add_workers, workers_of
from sim.cli.run import CannotRun, run_length_s
from sim.gpu.workloads import TraceError
from sim.node.scenario import ScenarioError, load_scenario
from sim.study.sentences import counted, duration, number, percent
from sim.study.sweep import (
    SHORT,
    WrongSweep,
    combinations,
    jobs,
    parsed_setting,
    run_job,
    sweep_report,
    told,
)
from sim.study.workers import CannotRunThere

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from gpuplugin.cli.parser import Commands
    from sim.study.sweep import Combination, SweepReport

MOST_SEEDS = 1000

COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("GOT NOTHING", "deprived", number),
    ("SLOWDOWN", "slowdown", number),
    ("P95", "slowdown_p95", number),
    ("WAITED", "waited", number),
    ("OOMS", "ooms", number),
    ("UTILISATION", "utilization", percent),
    ("SWITCHING", "switching_share", percent),
    ("FAIRNESS", "fairness", lambda value: f"{value:.2f}"),
)
"""Heading, figure, and how it is written."""


def add(commands: Commands) -> None:
    sweep = commands.add_parser(
        "sweep",
        help="run a scenario with every combination of settings",
        description="Run a scenario in virtual time with every combination of settings and several "
        "seeds, on all cores or on a Dask cluster, and compare.",
    )
    sweep.set_defaults(module="sim.cli.sweep", function="sweep")
    sweep.add_argument("scenario", metavar="SCENARIO", help="a shipped scenario's name, or a file")
    short = "; ".join(f"{key} ({what})" for key, what in SHORT.items())
    sweep.add_argument(
        "--set",
        action="append",
        required=True,
        metavar="KEY=A,B,...",
        help=f"values of a setting; may be repeated. Keys: {short}; or a key of the scenario, such "
        "as pods.api.count",
    )
    sweep.add_argument(
        "--seeds", type=int, default=4, metavar="N", help="runs of each combination (default 4)"
    )
    sweep.add_argument(
        "--until",
        metavar="DURATION",
        help="model time of each run (default: length_s of the scenario, else 10m)",
    )
    add_calibration(sweep)
    add_workers(sweep)
    sweep.add_argument("--json", action="store_true", help="print JSON")
    sweep.add_argument("--html", metavar="FILE", help="write a page that compares them")
    sweep.add_argument("--quiet", action="store_true", help="show no progress")


def sweep(parsed: argparse.Namespace) -> int:
    """Run all of it and print; 1 if something is wrong."""
    try:
        return _sweep(parsed)
    except (WrongSweep, CannotRun, CannotRunThere, ScenarioError, TraceError) as error:
        return fail(error)
    except OSError as error:
        return fail(f"{error.filename or parsed.html} cannot be written: {error.strerror or error}")


def _sweep(parsed: argparse.Namespace) -> int:
    if not 1 <= parsed.seeds <= MOST_SEEDS:
        raise WrongSweep(f"--seeds is {parsed.seeds}: give a number from 1 to {MOST_SEEDS}")
    if parsed.html is not None and find_spec("plotly") is None:
        raise CannotRun("--html needs plotly: pip install 'gpuplugin-sim[report]'")
    scenario = load_scenario(parsed.scenario)
    if parsed.calibration is not None:
        scenario = scenario.with_calibration(parsed.calibration)
    until_s = run_length_s(scenario, parsed.until)
    chosen = combinations([parsed_setting(text) for text in parsed.set])
    seeds = [scenario.seed + number for number in range(parsed.seeds)]
    planned = jobs(scenario, chosen, seeds, until_s)
    with ExitStack() as stack:
        page = None if parsed.html is None else stack.enter_context(output_file(parsed.html))
        started_s = time.monotonic()
        with progress_bar(f"{len(planned)} runs", shown=not parsed.quiet) as tell:
            found = workers_of(parsed).results(run_job, planned, tell)
        took_s = time.monotonic() - started_s
        report = sweep_report(scenario, chosen, seeds, until_s, found)
        if page is not None:
            from sim.study.html.sweeppage import sweep_page

            page.write(sweep_page(report))
    print(report.model_dump_json(indent=2) if parsed.json else "\n".join(as_text(report)))
    if not parsed.quiet:
        print(f"{counted(len(planned), 'run')} took {took_s:.1f} s.", file=sys.stderr)
    return 0


def as_text(report: SweepReport) -> list[str]:
    keys = list(report.combinations[0].settings)
    rows = [_row(one, keys) for one in report.combinations]
    header = (*(key.upper() for key in keys), *(heading for heading, _, _ in COLUMNS))
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    aligned = [
        [
            cell if number < len(keys) else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in (header, *rows)
    ]
    seeds = counted(len(report.seeds), "seed")
    return [
        f"{report.scenario}, {duration(report.until_s)} of model time, {seeds} each",
        "",
        *table(aligned[0], aligned[1:]),
        "",
        "Means over the seeds, ± half of the 95 % interval.",
        "GOT NOTHING: tenants without a request that was done.",
        "SLOWDOWN and P95 (over a request alone): of the kind of tenant that suffered most.",
    ]


def _row(one: Combination, keys: Sequence[str]) -> list[str]:
    return [
        *(str(one.settings[key]) for key in keys),
        *(told(one.figures[figure], shown) for _, figure, shown in COLUMNS),
    ]
