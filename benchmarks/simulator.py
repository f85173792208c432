"""How fast the simulator runs: scenarios in virtual time, and a replay of a cluster's trace.

Each run has a process of its own, so that the memory of one is not counted for the next. Wall times
are medians over `--turns`.
`python -m benchmarks.simulator` prints a table, `--json FILE` writes the figures. Without files of
the openb trace (`--nodes`, `--pods`) the fleet and its pods are made up, in openb's size.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from benchmarks.servers import deaf_to_ctrl_c
from sim.node.scenario import load_scenario
from sim.study.fleet import Replay
from sim.study.openb import FleetNode, FleetPod, read_nodes, read_pods
from sim.virtual.run import VirtualRun
from sim.virtual.settings import settings_for

if TYPE_CHECKING:
    from collections.abc import Callable

DAY_S = 86_400.0
SCENARIOS = (("noisy-neighbour", 600.0), ("sixteen-gpus", 600.0), ("production-week", 7 * DAY_S))
REPLICAS = 10

MACHINES, PODS, SPAN_S = 1_213, 8_152, 150 * DAY_S
"""Of openb: machines with GPUs, pods, and about the time over which these came."""


@dataclass(frozen=True)
class OneRun:
    """What one run took. An event is one of simpy, or of a replay the coming or going of a pod."""

    simulated_s: float
    wall_s: float
    events: int
    peak_mib: float


@dataclass(frozen=True)
class Speed:
    """Medians over the turns; `peak_mib` is the largest resident set that any of them had."""

    name: str
    simulated_s: float
    wall_s: float
    simulated_s_per_s: float
    events: int
    events_per_s: float
    peak_mib: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--nodes", metavar="FILE", help="machines of openb, as CSV")
    parser.add_argument("--pods", metavar="FILE", help="pods of openb, as CSV")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args()
    if bool(options.nodes) != bool(options.pods):
        parser.error("--nodes and --pods go together")
    figures = [
        speed_of(name, [in_own_process(run_scenario, name, until_s) for _ in range(options.turns)])
        for name, until_s in SCENARIOS
    ]
    replays = [
        in_own_process(run_replay, options.nodes, options.pods) for _ in range(options.turns)
    ]
    figures.append(speed_of("replay" if options.nodes else "replay (made up)", replays))
    print("\n".join(as_text(figures)))
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(one) for one in figures], indent=2))


def as_text(figures: list[Speed]) -> list[str]:
    header = (
        f"{'run':18} {'simulated s':>12} {'wall s':>8} {'simulated s per s':>18} "
        f"{'events':>9} {'events per s':>13} {'peak MiB':>9}"
    )
    return [
        header,
        *(
            f"{one.name:18} {one.simulated_s:12.0f} {one.wall_s:8.2f} "
            f"{one.simulated_s_per_s:18.0f} {one.events:9} {one.events_per_s:13.0f} "
            f"{one.peak_mib:9.0f}"
            for one in figures
        ),
    ]


def speed_of(name: str, runs: list[OneRun]) -> Speed:
    wall_s = statistics.median(run.wall_s for run in runs)
    simulated_s, events = runs[0].simulated_s, runs[0].events
    peak_mib = max(run.peak_mib for run in runs)
    return Speed(name, simulated_s, wall_s, simulated_s / wall_s, events, events / wall_s, peak_mib)


def run_scenario(name: str, until_s: float) -> OneRun:
    """A shipped scenario in virtual time, with the whole stack and an event log that is dropped."""
    scenario = load_scenario(name)
    settings = settings_for(scenario, {}, {}, None)
    started_s = time.perf_counter()
    outcome = VirtualRun(scenario, settings, until_s).run()
    return OneRun(until_s, time.perf_counter() - started_s, outcome.steps, _peak_mib())


def run_replay(nodes_file: str | None, pods_file: str | None) -> OneRun:
    """A trace on its fleet, each GPU shared by ten; reading the files does not count."""
    if nodes_file and pods_file:
        nodes, pods = read_nodes(nodes_file), read_pods(pods_file)
    else:
        nodes, pods = made_up_fleet(MACHINES, PODS)
    started_s = time.perf_counter()
    outcome = Replay(nodes, pods, REPLICAS).run()
    wall_s = time.perf_counter() - started_s
    ended = sum(stay.left_s is not None for stay in outcome.stays)
    return OneRun(outcome.span_s, wall_s, len(pods) + ended, _peak_mib())


def made_up_fleet(machines: int, pods: int) -> tuple[list[FleetNode], list[FleetPod]]:
    """Machines and pods that look like openb's from afar; the numbers are made up."""
    random = Random("fleet")
    nodes = [
        FleetNode(f"n{number}", 96_000, 393_216, random.choice((2, 4, 8, 8)), "T4")
        for number in range(machines)
    ]
    made = []
    for number in range(pods):
        whole = random.random() < 0.6
        made.append(
            FleetPod(
                name=f"p{number}",
                cpu_milli=random.choice((2_000, 4_000, 8_000, 12_000)),
                memory_mib=random.choice((4_096, 16_384, 32_768)),
                gpus=random.choices((1, 2, 4, 8), (90, 5, 3, 2))[0] if whole else 0,
                share=0.0 if whole else random.choice((0.1, 0.2, 0.3, 0.5, 0.8)),
                created_s=random.uniform(0, SPAN_S),
                life_s=min(random.lognormvariate(10, 2.0), 30 * DAY_S),
                batch=random.random() < 0.5,
            )
        )
    return nodes, sorted(made, key=lambda pod: (pod.created_s, pod.name))


def in_own_process(call: Callable[..., OneRun], *arguments: object) -> OneRun:
    """Run it elsewhere: its peak of memory is its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        with deaf_to_ctrl_c():
            answer = pool.submit(call, *arguments)
        return answer.result()


def _peak_mib() -> float:
    """The largest resident set of this process so far, as Linux counts it (KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
