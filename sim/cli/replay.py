"""`gpuplugin sim replay`: the pods of a cluster's trace on a simulated fleet with sharing."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gpuplugin.cli.text import fail, table
from sim.study.fleet import FleetReport, Replay, Spread, fleet_report
from sim.study.openb import TraceError, read_nodes, read_pods
from sim.study.sentences import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuplugin.cli.parser import Commands


def add(commands: Commands) -> None:
    replay = commands.add_parser("replay", help="replay a cluster's trace on a fleet that shares")
    replay.set_defaults(module="sim.cli.replay", function="replay")
    replay.add_argument("--pods", required=True, metavar="CSV", help="pods of the openb trace")
    replay.add_argument("--nodes", required=True, metavar="CSV", help="machines of the openb trace")
    replay.add_argument(
        "--replicas", type=_positive, default=4, metavar="N", help="of each GPU (default 4)"
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
    replay.add_argument("--json", action="store_true", help="print JSON")


def replay(parsed: argparse.Namespace) -> int:
    """Replay and print; 1 if the files are not such a trace."""
    try:
        nodes, pods = read_nodes(parsed.nodes), read_pods(parsed.pods)
    except TraceError as error:
        return fail(error)
    if not nodes or not pods:
        what = parsed.pods if nodes else parsed.nodes
        return fail(f"{what}: there is nothing with a GPU in it")
    outcome = Replay(nodes, pods, parsed.replicas, parsed.policy, parsed.occupancy).run()
    report = fleet_report(outcome)
    print(report.model_dump_json(indent=2) if parsed.json else _text(report, len(nodes)))
    return 0


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


def _cells(
    values: Spread, shown: Callable[[float], str] = lambda value: f"{value:.2f}"
) -> tuple[str, ...]:
    numbers = (values.min, values.mean, values.p50, values.p95, values.p99, values.max)
    return (str(values.count), *("-" if one is None else shown(one) for one in numbers))


def span(seconds: float) -> str:
    """A time as people write it, short: 45 s, 12 min, 5 h, 19 d."""
    for least_s, unit_s, unit in ((2 * 86400, 86400, "d"), (2 * 3600, 3600, "h"), (120, 60, "min")):
        if seconds >= least_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, found {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, found {text!r}")
    return value
