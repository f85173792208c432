"""`gpuplugin advise`: how many replicas, with the evidence."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.cli.text import fail, output_file, progress_bar, table
from hal import TimeSliceLevel
from sim.advise.advice import Goals, Plan, WrongPlan, advise
from sim.advise.check import NoAdvice, NothingSeen, as_rows, check, read_advice, verdict
from sim.advise.check import as_json as check_json
from sim.advise.history import USUAL_REQUEST_MS, CannotRead, Requests, shown, workloads_of
from sim.advise.prometheus import LEAST_STEP_S, history, seen_since
from sim.advise.recordings import history_of
from sim.advise.words import confidence, configuration, remarks, sentence
from sim.advise.workload import PRESETS, WrongWorkload, parsed_workload
from sim.cli.options import add_calibration, add_workers, given_calibration, workers_of
from sim.cli.run import span_s
from sim.gpu.calibration import CannotUse
from sim.gpu.profiles import UnknownModel, load_profile
from sim.study.sentences import number, percent
from sim.study.share import Mechanism
from sim.study.workers import CannotRunThere

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from sim.advise.advice import Advice, Row
    from sim.advise.history import History
    from sim.advise.workload import Workload

NOTHING = "-"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", help="GPU model, as scenarios call it; always needed but for --check"
    )
    parser.add_argument(
        "--workload",
        action="append",
        default=[],
        metavar="NAME:BUSY-MS/PERIOD-MS/GIB[:COUNT]",
        help="COUNT pods, each of which uses the GPU for BUSY-MS, when alone, every PERIOD-MS, and "
        f"holds GIB; or a preset, {', '.join(PRESETS)}, with [:COUNT]. May be repeated",
    )
    parser.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="GPUs for them, evenly (default 1)"
    )
    parser.add_argument(
        "--record",
        action="append",
        default=[],
        metavar="FILE",
        help="take workloads from the usage over time of a node that 'gpuplugin record' wrote. May "
        "be repeated",
    )
    parser.add_argument(
        "--prometheus",
        metavar="URL",
        help="take workloads from the history of this plugin's metrics, or of dcgm-exporter's",
    )
    parser.add_argument(
        "--since",
        metavar="DURATION",
        help="how much of the history (default 7d; with --check since the advice)",
    )
    parser.add_argument(
        "--by",
        choices=("workload", "namespace"),
        default="workload",
        help="pods of what made them, or of a namespace, are one workload (default workload)",
    )
    parser.add_argument(
        "--selector",
        default="",
        metavar="MATCHERS",
        help="only series with these labels, as in PromQL, such as 'namespace=\"ml\"'",
    )
    parser.add_argument(
        "--request-ms",
        action="append",
        default=[],
        metavar="[WORKLOAD=]MS",
        help="GPU work of one request of workloads from a history, or of one of them, which no "
        f"metric shows (default {USUAL_REQUEST_MS:g}). May be repeated",
    )
    parser.add_argument(
        "--arrivals",
        choices=("closed", "open"),
        help="how requests come, but for presets: each some time after the one before was done "
        "(closed), or at random, whoever waits (open); default: closed, and what open would change",
    )
    parser.add_argument(
        "--slowdown-p95",
        type=float,
        default=2.0,
        metavar="X",
        help="95 of 100 requests of whoever suffers most take at most X times as long as alone "
        "(default 2)",
    )
    parser.add_argument(
        "--oom-per-week",
        type=float,
        default=0.01,
        metavar="X",
        help="how often memory may run out on a GPU (default 0.01)",
    )
    parser.add_argument(
        "--min-utilization",
        type=float,
        default=0.0,
        metavar="0..1",
        help="say so where a GPU is less busy than this",
    )
    parser.add_argument(
        "--mechanism",
        choices=[one.value for one in Mechanism if one is not Mechanism.EXCLUSIVE],
        default=Mechanism.TIME_SLICING.value,
        help="how pods share (default time-slicing); the others are named beside it",
    )
    parser.add_argument(
        "--level",
        choices=[one.name.lower() for one in TimeSliceLevel],
        default="default",
        help="length of time slices; only that of default was ever measured",
    )
    add_calibration(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default 0")
    add_workers(parser)
    parser.add_argument(
        "--check",
        metavar="FILE",
        help="compare what an advice (its --json) predicted with what the metrics of --prometheus "
        "show since",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", metavar="FILE", help="write a page with the trade-off")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(parsed: argparse.Namespace) -> int:
    """Print the advice; 1 if something is wrong, 0 whatever the advice is."""
    try:
        if parsed.check is not None:
            return _check(parsed)
        if parsed.model is None:
            raise WrongPlan("no GPU model: give --model")
        workloads, notes = _workloads(parsed)
        plan = Plan(
            model=parsed.model,
            workloads=tuple(workloads),
            goals=Goals(parsed.slowdown_p95, parsed.oom_per_week, parsed.min_utilization),
            gpus=parsed.gpus,
            mechanism=Mechanism(parsed.mechanism),
            level=TimeSliceLevel[parsed.level.upper()],
            seed=parsed.seed,
            calibration=given_calibration(parsed),
        )
        return _run(parsed, plan, notes)
    except (
        *(WrongPlan, WrongWorkload, UnknownModel, CannotRead, CannotRunThere),
        *(CannotUse, NoAdvice, NothingSeen),
    ) as error:
        return fail(error)
    except OSError as error:
        return fail(f"{error.filename or parsed.html} cannot be written: {error.strerror or error}")


def _workloads(parsed: argparse.Namespace) -> tuple[list[Workload], list[str]]:
    """From the command line and from histories, and what there is to say about the latter."""
    requests = _requests(parsed)
    found, notes = [_arriving(one, requests) for one in map(parsed_workload, parsed.workload)], []
    for source, (seen, lost) in _histories(parsed):
        workloads, told = workloads_of(seen, parsed.by, requests, source)
        found += workloads
        notes += [shown(seen, source, requests), *lost, *told]
    unknown = requests.length_ms.keys() - {one.name for one in found}
    if unknown:
        raise WrongPlan(
            f"--request-ms: there is no workload {', '.join(sorted(unknown))}; there are "
            f"{', '.join(one.name for one in found)}"
        )
    return found, notes


def _requests(parsed: argparse.Namespace) -> Requests:
    usual_ms, lengths = None, {}
    for text in parsed.request_ms:
        name, _, length = text.rpartition("=")
        try:
            length_ms = float(length)
        except ValueError:
            length_ms = math.nan
        if not 0.01 <= length_ms <= 60_000:
            raise WrongPlan(f"--request-ms {text}: give a number from 0.01 to 60000")
        if name:
            lengths[name] = length_ms
        else:
            usual_ms = length_ms
    return Requests(usual_ms, lengths, parsed.arrivals)


def _arriving(one: Workload, requests: Requests) -> Workload:
    if requests.arrival is None or one.source == "preset":
        return one
    return replace(one, arrival=requests.arrival, assumed=one.assumed - {"arrival"})


def _histories(parsed: argparse.Namespace) -> Iterator[tuple[str, tuple[History, list[str]]]]:
    """What histories are read from, with their notes."""
    if parsed.record:
        yield "recording" if len(parsed.record) == 1 else "recordings", history_of(parsed.record)
    if parsed.prometheus is not None:
        since_s = _span_s(parsed.since or "7d")
        yield "prometheus", history(parsed.prometheus, since_s, parsed.selector)


def _span_s(text: str) -> float:
    try:
        return span_s(text)
    except ValueError as error:
        raise WrongPlan(f"--since: {error}") from error


def _check(parsed: argparse.Namespace) -> int:
    """Print what an advice predicted beside what was seen; 0 whatever that is."""
    if parsed.prometheus is None:
        raise WrongPlan("--check needs --prometheus: the metrics say what became of the advice")
    now = datetime.now(UTC)
    try:
        advised = read_advice(Path(parsed.check))
    except OSError as error:
        raise NoAdvice(f"{parsed.check} cannot be read: {error.strerror or error}") from error
    since_s = (now - advised.made_at).total_seconds()
    if parsed.since is not None:
        since_s = _span_s(parsed.since)
    if since_s < LEAST_STEP_S:
        raise WrongPlan("--check: the advice was made just now: there is nothing to see yet")
    found = check(advised, seen_since(parsed.prometheus, since_s, parsed.selector))
    if parsed.json:
        print(json.dumps(check_json(found, now), indent=2))
    else:
        header = ("", "PREDICTED", "SEEN", "PREDICTION OFF BY")
        print("\n".join([verdict(found), "", *table(header, as_rows(found)), "", *found.notes]))
    return 0


def _run(parsed: argparse.Namespace, plan: Plan, notes: Sequence[str]) -> int:
    if parsed.html is not None and find_spec("plotly") is None:
        raise WrongPlan("--html needs plotly: pip install 'gpuplugin-sim[report]'")
    profile = load_profile(plan.model)
    if plan.mechanism is Mechanism.MIG and not profile.mig:
        raise WrongPlan(f"{plan.model} has no MIG: take another --mechanism")
    if plan.level is not TimeSliceLevel.DEFAULT and not profile.has_levels:
        raise WrongPlan(f"{plan.model} has no time-slice levels: leave --level out")
    with ExitStack() as stack:
        page = None if parsed.html is None else stack.enter_context(output_file(parsed.html))
        with progress_bar("trials", shown=not parsed.quiet) as tell:
            advice = advise(plan, workers_of(parsed), tell)
        if page is not None:
            from sim.advise.page import advice_page

            page.write(advice_page(advice, notes))
    if parsed.json:
        print(json.dumps({**as_json(advice, datetime.now(UTC)), "history": list(notes)}, indent=2))
    else:
        print("\n".join(as_text(advice, notes)))
    return 0


def as_text(advice: Advice, notes: Sequence[str] = ()) -> list[str]:
    """The advice; `notes` are about the history that it rests on."""
    header = (
        *("REPLICAS", "ON A GPU", "SLOWDOWN P50", "P95", "P99", "OOM A WEEK", "GET NOTHING"),
        *("UTILISATION", "SWITCHING", "GOALS"),
    )
    config = configuration(advice)
    return [
        sentence(advice),
        *remarks(advice),
        "",
        *table(header, [_cells(advice, row) for row in advice.rows]),
        "",
        "SLOWDOWN: requests of whoever suffers most, over requests alone.",
        *confidence(advice),
        *(["", "From the history:", *notes] if notes else []),
        *(["", "The configuration for it:", "", *config.splitlines()] if config else []),
    ]


def _cells(advice: Advice, row: Row) -> tuple[str, ...]:
    return (
        f"{row.replicas}{' <' if row.replicas == advice.replicas else ''}",
        str(row.sharing),
        *(NOTHING if value is None else f"{value:.2f}" for value in (row.p50, row.p95, row.p99)),
        number(row.ooms_per_week),
        str(row.left_out) if not row.refused else f"{row.left_out} + {percent(row.refused)}",
        percent(row.utilization),
        percent(row.switching),
        "kept" if row.keeps else "missed",
    )


def as_json(advice: Advice, made_at: datetime) -> dict[str, object]:
    plan = advice.plan
    return {
        "replicas": advice.replicas,
        "sentence": sentence(advice),
        "remarks": remarks(advice),
        "confidence": confidence(advice),
        "model": plan.model,
        "calibration": None
        if plan.calibration is None
        else plan.calibration.model_dump(mode="json", exclude_none=True),
        "mechanism": plan.mechanism.value,
        "level": plan.level.name.lower(),
        "gpus": plan.gpus,
        "seed": plan.seed,
        "made_at": made_at.isoformat(timespec="seconds"),
        "workloads": [one.as_json() for one in plan.workloads],
        "goals": asdict(plan.goals),
        "rows": [asdict(row) for row in advice.rows],
        "others": {one.value: replicas for one, replicas in advice.others.items()},
        "assumptions": [asdict(one) for one in advice.assumptions],
        "config": configuration(advice),
    }
