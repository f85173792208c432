"""`gpuplugin sim run`, a scenario in virtual time with its report; `gpuplugin sim scenario`."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.cli.options import add_options, given_options
from gpuplugin.cli.text import fail, output_file, progress_bar, table
from gpuplugin.config.loaded import ConfigError
from gpuplugin.config.values import parse_duration_s
from gpuplugin.core.node import ConfigurationMisfit
from sim.cli.options import add_calibration
from sim.cli.report import as_text
from sim.gpu.workloads import TraceError
from sim.node.scenario import Scenario, ScenarioError, load_scenario, scenario_names
from sim.study.report import report_of
from sim.study.sentences import duration
from sim.virtual.run import WINDOW_S, VirtualRun
from sim.virtual.settings import load_for

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence
    from typing import TextIO

    from gpuplugin.cli.parser import Commands
    from gpuplugin.config.settings import Settings
    from sim.virtual.run import Outcome


_DAY_S = 86_400.0
_USUAL_LENGTH_S = 600.0
_MOMENTS = 64
"""So often are slices noted, for the page to show the most crowded moment."""
_DAYS = re.compile(r"(\d+(?:\.\d*)?|\.\d+)d(.*)", re.ASCII)

_NAMES = (
    "--mig-strategy",
    "--shared-devices-allocation-policy",
    "--include-gpus",
    "--exclude-gpus",
)
"""Options of the plugin, beside those of health, that make a difference without containers."""


def add_run(commands: Commands) -> None:
    run = commands.add_parser("run", help="run a scenario in virtual time and report")
    run.set_defaults(module="sim.cli.run", function="run")
    run.add_argument("scenario", metavar="SCENARIO", help="a shipped scenario's name, or a file")
    run.add_argument("--seed", type=int, metavar="N", help="instead of the scenario's own")
    run.add_argument(
        "--dra", action="store_true", help="give GPUs to pods by Dynamic Resource Allocation"
    )
    run.add_argument(
        "--until",
        metavar="DURATION",
        help="model time to run, for example 90s, 12h or 7d (default: length_s of the scenario, "
        "else 10m)",
    )
    add_calibration(run)
    run.add_argument("--events", metavar="FILE", help="write the event log, as JSON lines")
    run.add_argument("--report", metavar="FILE", help="write the report as JSON")
    run.add_argument("--html", metavar="FILE", help="write a page with plots")
    run.add_argument(
        "--slices-at",
        metavar="DURATION",
        help="when 0.1 s of slices is noted for the page (default: where most tenants take turns)",
    )
    run.add_argument("--quiet", action="store_true", help="print no report and no progress")
    add_options(run, sections=("health",), names=_NAMES)


def add_scenario(commands: Commands) -> None:
    scenario = commands.add_parser("scenario", help="scenarios of simulated nodes")
    scenario_commands = scenario.add_subparsers(metavar="COMMAND", required=True)
    scenarios = scenario_commands.add_parser("list", help="list the shipped ones")
    scenarios.set_defaults(module="sim.cli.run", function="scenario_list")
    check = scenario_commands.add_parser("check", help="check a file, or a shipped one by name")
    check.set_defaults(module="sim.cli.run", function="scenario_check")
    check.add_argument("scenario", metavar="FILE|NAME")
    for one in (scenarios, check):
        one.add_argument("--json", action="store_true", help="print JSON")
    schema = scenario_commands.add_parser("schema", help="print the JSON schema of scenarios")
    schema.set_defaults(module="sim.cli.run", function="scenario_schema")


class CannotRun(Exception):
    """The run cannot begin, or cannot go on; the text says why, in one line."""


def run(parsed: argparse.Namespace) -> int:
    """Run, write the files that were asked for, print the report; 1 if something is wrong."""
    try:
        _run(parsed)
    except (CannotRun, ScenarioError, TraceError, ConfigurationMisfit) as error:
        return fail(error)
    except ConfigError as error:
        return fail(f"the configuration cannot be used:\n{error}")
    return 0


def scenario_list(parsed: argparse.Namespace) -> int:
    found = [load_scenario(name) for name in scenario_names()]
    rows = [(one.name, " ".join(one.description.split())) for one in found]
    if parsed.json:
        print(json.dumps([{"name": name, "description": text} for name, text in rows], indent=2))
    else:
        print("\n".join(table(("SCENARIO", "WHAT IT IS ABOUT"), rows)))
    return 0


def scenario_check(parsed: argparse.Namespace) -> int:
    """Check a scenario and say what it is; 1 if it cannot be used."""
    try:
        scenario = load_scenario(parsed.scenario)
    except ScenarioError as error:
        return fail(error)
    streams = sum(group.arrivals_per_hour is not None for group in scenario.pods)
    counts = {
        "GPUs": scenario.gpu_count,
        "tenants": len(scenario.tenants),
        "pods": sum(one.count for one in scenario.pods if one.arrivals_per_hour is None),
        "streams of pods": streams,
        "timed faults": len(scenario.faults),
        "kinds of failures": len(scenario.failures),
    }
    if parsed.json:
        print(json.dumps({"name": scenario.name, **counts}, indent=2))
    else:
        print(f"{scenario.name}: {', '.join(f'{count} {what}' for what, count in counts.items())}")
    return 0


def scenario_schema(_parsed: argparse.Namespace) -> int:
    print(json.dumps(Scenario.model_json_schema(), indent=2))
    return 0


def span_s(text: str) -> float:
    """Seconds of `7d`, `1d12h` or Go's `90s`; raises `ValueError` for others and for 0."""
    days = _DAYS.fullmatch(text)
    try:
        seconds = float(days[1]) * _DAY_S if days else 0.0
        if days is None or days[2]:
            seconds += parse_duration_s(days[2] if days else text)
    except ValueError:
        raise ValueError(f"must be a duration such as 90s, 12h or 7d, found {text!r}") from None
    if seconds < 1e-9:
        raise ValueError(f"must be above 0, found {text!r}")
    return seconds


def busy_moment_s(scenario: Scenario, until_s: float) -> float:
    """A moment of the run at which there is most to see: every tenant has begun by then."""
    if any(group.arrivals_per_hour for group in scenario.pods):
        return until_s / 2
    starts = [group.start_s for group in scenario.pods]
    starts += [tenant.start_s for tenant in scenario.tenants]
    last_s = max((start_s for start_s in starts if start_s < until_s), default=0.0)
    return min(last_s + 1.0, (last_s + until_s) / 2)


def _run(parsed: argparse.Namespace) -> None:
    scenario = load_scenario(parsed.scenario)
    until_s = run_length_s(scenario, parsed.until)
    if parsed.calibration is not None:
        scenario = scenario.with_calibration(parsed.calibration)
    if parsed.seed is not None:
        scenario = scenario.model_copy(update={"seed": parsed.seed})
    if parsed.dra:
        scenario = scenario.model_copy(update={"allocation": "dra"})
    loaded = load_for(scenario, given_options(parsed), os.environ, parsed.config_file)
    for warning in loaded.warnings:
        print(f"gpuplugin: {warning}", file=sys.stderr)
    windows_at_s = _windows(parsed.slices_at, scenario, until_s)
    with ExitStack() as stack:
        files = _files(parsed, stack)
        started_s = time.monotonic()
        outcome = _simulate(parsed, scenario, loaded.settings, until_s, windows_at_s, files)
        took_s = time.monotonic() - started_s
        report = report_of(outcome)
        if "report" in files:
            files["report"].write(report.model_dump_json(indent=2) + "\n")
        if "html" in files:
            from sim.study.html import page_of

            files["html"].write(page_of(outcome, report, scenario.description))
    if not parsed.quiet:
        print("\n".join(as_text(report)))
        print(f"{duration(until_s)} of model time took {took_s:.1f} s.", file=sys.stderr)


def _windows(slices_at: str | None, scenario: Scenario, until_s: float) -> list[float]:
    """When slices are noted: at one moment, or at many of which the most crowded is kept."""
    if slices_at is not None:
        at_s = _duration("--slices-at", slices_at)
        if at_s + WINDOW_S > until_s:
            raise CannotRun(
                f"--slices-at: {slices_at} is not within the {duration(until_s)} of the run"
            )
        return [at_s]
    begin_s = busy_moment_s(scenario, until_s)
    step_s = max(2 * WINDOW_S, (until_s - begin_s) / _MOMENTS)
    count = max(1, int((until_s - begin_s - WINDOW_S) / step_s))
    return [begin_s + number * step_s for number in range(count)]


def run_length_s(scenario: Scenario, until: str | None) -> float:
    """Model time of a run: what `--until` says, else the scenario; raises `CannotRun`."""
    if until is None:
        return scenario.length_s or _USUAL_LENGTH_S
    return _duration("--until", until)


def _duration(flag: str, text: str) -> float:
    try:
        return span_s(text)
    except ValueError as error:
        raise CannotRun(f"{flag}: {error}") from error


def _files(parsed: argparse.Namespace, stack: ExitStack) -> dict[str, TextIO]:
    """The files to write. What cannot be written is told before a long run, not after it."""
    names = ("events", "report", "html")
    wanted = {name: vars(parsed)[name] for name in names if vars(parsed)[name] is not None}
    if len({Path(path).resolve() for path in wanted.values()}) < len(wanted):
        raise CannotRun("--events, --report and --html must be different files")
    if parsed.html is not None and find_spec("plotly") is None:
        raise CannotRun("--html needs plotly: pip install 'gpuplugin-sim[report]'")
    return {name: stack.enter_context(_writing(path)) for name, path in wanted.items()}


def _simulate(
    parsed: argparse.Namespace,
    scenario: Scenario,
    settings: Settings,
    until_s: float,
    windows_at_s: Sequence[float],
    files: Mapping[str, TextIO],
) -> Outcome:
    def log(line: str) -> None:
        if stream is not None:
            stream.write(f"{line}\n")

    stream = files.get("events")
    run = VirtualRun(scenario, settings, until_s, log, windows_at_s)
    with progress_bar(scenario.name, shown=not parsed.quiet) as tell:
        return run.run(tell)


@contextmanager
def _writing(path: str) -> Iterator[TextIO]:
    """A file to write to; what goes wrong with it, in the end too, is a `CannotRun`."""
    try:
        with output_file(path) as stream:
            yield stream
    except OSError as error:
        raise CannotRun(f"{path} cannot be written: {error.strerror or error}") from error
