"""`gpuplugin sim replay`: the pods of a cluster's trace on a simulated fleet with sharing."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from gpuplugin.cli.text import fail, table
from sim.cli.options import add_workers, workers_of
from sim.cli.share import counts
from sim.study.fleet import FleetReport, ReplayPlan, Spread, replayed
from sim.study.openb import TraceError, read_nodes, read_pods
from sim.study.sentences import counted
from sim.study.workers import CannotRunThere

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gpuplugin.cli.parser import Commands


def add(commands: Commands) -> None:
    replay = commands.add_parser("replay", help="replay a cluster's trace on a fleet that shares")
    replay.set_defaults(module="sim.cli.replay", function="replay")
    replay.add_argument("--pods", required=True, metavar="CSV", help="pods of the openb trace")
    replay.add_argument("--nodes", required=True, metavar="CSV", help="machines of the openb trace")
    replay.add_argument(
        "--replicas",
        type=counts,
        default=[4],
        metavar="N,...",
        help="of each GPU; of several, a row each (default 4)",
    )
    replay.add_argument(
        "--machines", type=counts, metavar="N,...", help="the first N of the trace (default: all)"
    )
    replay.add_argument(
        "--policy",
        choices=("packed", "distributed"),
        default="packed",
        help="which GPU of a machine: the fullest, or the emptiest (default packed)",
    )
    replay.add_argument(
        "--occupancy",
        type=_share,
        default=1.0,
        metavar="0..1",
        help="how much of a GPU the pods' kernels fill, for the cost of switches (default 1)",
    )
    add_workers(replay)
    replay.add_argument("--json", action="store_true", help="print JSON; of several, a list")


def replay(parsed: argparse.Namespace) -> int:
    """Replay and print; 1 if the files are not such a trace."""
    try:
        nodes, pods = read_nodes(parsed.nodes), read_pods(parsed.pods)
    except TraceError as error:
        return fail(error)
    if not nodes or not pods:
        what = parsed.pods if nodes else parsed.nodes
        return fail(f"{what}: there is nothing with a GPU in it")
    plans = [
        ReplayPlan(nodes[:machines], pods, replicas, parsed.policy, parsed.occupancy)
        for machines in parsed.machines or [len(nodes)]
        for replicas in parsed.replicas
    ]
    try:
        reports = workers_of(parsed).results(replayed, plans) if plans[1:] else [replayed(plans[0])]
    except CannotRunThere as error:
        return fail(error)
    if parsed.json:
        values = [report.model_dump(mode="json") for report in reports]
        print(json.dumps(values if plans[1:] else values[0], indent=2))
    elif plans[1:]:
        print(_rows(plans, reports))
    else:
        print(_text(reports[0], len(plans[0].nodes)))
    return 0


def _rows(plans: Sequence[ReplayPlan], reports: Sequence[FleetReport]) -> str:
    header = (
        *("MACHINES", "GPUS", "REPLICAS", "NEVER PLACED", "WAITED", "WAIT P95", "MAX"),
        *("BATCH TIMES P50", "P95", "DEMAND MET P50", "P5", "SHARED", "GPUS USED", "FAIRNESS"),
    )
    rows = [
        (
            str(len(plan.nodes)),
            str(report.gpus),
            str(report.replicas),
            str(report.pods_never_placed),
            str(report.pods_waited),
            *_told((report.wait_s.p95, report.wait_s.max), span),
            *_told((report.slowdown.p50, report.slowdown.p95)),
            *_told((report.demand_met.p50, report.demand_met.p5)),
            str(report.pods_sharing),
            str(report.gpus_used_most),
            *_told((report.fairness,)),
        )
        for plan, report in zip(plans, reports, strict=True)
    ]
    days = max(report.span_h for report in reports) / 24
    head = f"{counted(reports[0].pods, 'pod')}, policy {reports[0].policy}, {days:.1f} days"
    return "\n".join([head, "", *table(header, rows)])


def _text(report: FleetReport, machines: int) -> str:
    rows = [
        ("waited for a GPU", *_cells(report.wait_s, span)),
        ("batch pods: times as long", *_cells(report.slowdown)),
        ("other pods: demand met", *_cells(report.demand_met)),
        ("neighbours at most", *_cells(report.neighbours_most)),
    ]
    total_h = report.gpus * report.span_h
    fleet = f"{report.pods} pods on {machines} machines with {report.gpus} GPUs"
    sharing = f"{counted(report.replicas, 'replica')} of each, policy {report.policy}"
    head = [f"{fleet}, {sharing}, {report.span_h / 24:.1f} days"]
    if report.pods_never_placed:
        head.append(f"{report.pods_never_placed} pods got nothing: they never found room")
    head.append(
        f"{report.pods_waited} pods waited for more than a minute; {report.pods_sharing} shared a "
        f"GPU with others, {report.pods_of_parts - report.pods_sharing} that asked for a part of "
        "one had it alone"
    )
    used = f"GPU time: {report.gpu_hours_busy:.0f} h of {total_h:.0f} h busy"
    lost = f"{report.gpu_hours_switching:.1f} h lost to switching"
    fairness = "-" if report.fairness is None else f"{report.fairness:.3f}"
    nothing = ", 0 for those that never found room" if report.pods_never_placed else ""
    foot = [
        f"{used}, {lost}; at most {report.gpus_used_most} GPUs in use",
        f"fairness among pods that ask for a part of a GPU{nothing}: {fairness}",
    ]
    header = ("", "PODS", "MIN", "MEAN", "P50", "P95", "P99", "MAX")
    return "\n".join([*head, "", *table(header, rows), "", *foot])


def _hundredths(value: float) -> str:
    return f"{value:.2f}"


def _cells(values: Spread, shown: Callable[[float], str] = _hundredths) -> tuple[str, ...]:
    numbers = (values.min, values.mean, values.p50, values.p95, values.p99, values.max)
    return (str(values.count), *_told(numbers, shown))


def _told(
    values: Iterable[float | None], shown: Callable[[float], str] = _hundredths
) -> tuple[str, ...]:
    return tuple("-" if one is None else shown(one) for one in values)


def span(seconds: float) -> str:
    """A time as people write it, short: 45 s, 12 min, 5 h, 19 d."""
    for least_s, unit_s, unit in ((2 * 86400, 86400, "d"), (2 * 3600, 3600, "h"), (120, 60, "min")):
        if seconds >= least_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, found {text!r}")
    return value
