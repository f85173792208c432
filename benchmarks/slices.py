"""What skipping whole rounds gains: time slicing against the one that follows every slice.

Both follow the same workload, in turns, so noise of the machine hits both alike. The stepwise one
is given when works end, so that its slow way of finding out does not count; the other one finds out
for itself. `python -m benchmarks.slices` prints a table, `--json FILE` writes the figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sim.gpu.scheduler import NS_PER_MS, NS_PER_S, ContextId
from sim.gpu.timeslicing import StepwiseTimeSlicing, TimeSlicing

if TYPE_CHECKING:
    from sim.gpu.scheduler import Scheduler

CLIENTS = 8
WORKS_MS = (10, 100, 1_000, 10_000)


@dataclass(frozen=True)
class Gain:
    """One length of work: wall times in ms (medians), their ratio, and simulated s per wall s."""

    work_ms: int
    simulated_s: float
    skipping_ms: float
    stepwise_ms: float
    ratio: float
    simulated_s_per_s: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7, help="runs of each (default 7)")
    parser.add_argument("--works", type=int, default=200, help="works that end (default 200)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args()
    figures = [measure(work_ms, options.works, options.turns) for work_ms in WORKS_MS]
    print(f"{CLIENTS} saturating clients, {options.works} works")
    print(
        f"{'work ms':>8} {'simulated s':>12} {'skipping ms':>12} {'stepwise ms':>12} "
        f"{'ratio':>7} {'simulated s per s':>18}"
    )
    for figure in figures:
        print(
            f"{figure.work_ms:8} {figure.simulated_s:12.2f} {figure.skipping_ms:12.2f} "
            f"{figure.stepwise_ms:12.2f} {figure.ratio:7.1f} {figure.simulated_s_per_s:18.0f}"
        )
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(one) for one in figures], indent=2))


def measure(work_ms: int, works: int, turns: int) -> Gain:
    """Both implementations by turns; they must end in the same state."""
    work_ns = work_ms * NS_PER_MS
    ends_ns = _skip(TimeSlicing(), work_ns, works)
    skipping_s, stepwise_s = [], []
    for _ in range(turns):
        fast, plain = TimeSlicing(), StepwiseTimeSlicing()
        started_s = time.perf_counter()
        _skip(fast, work_ns, works)
        skipping_s.append(time.perf_counter() - started_s)
        started_s = time.perf_counter()
        _follow(plain, work_ns, ends_ns)
        stepwise_s.append(time.perf_counter() - started_s)
        if fast.state != plain.state:
            raise AssertionError("the implementations differ")
    simulated_s = ends_ns[-1] / NS_PER_S
    fast_s, slow_s = statistics.median(skipping_s), statistics.median(stepwise_s)
    return Gain(
        work_ms, simulated_s, fast_s * 1000, slow_s * 1000, slow_s / fast_s, simulated_s / fast_s
    )


def _skip(engine: Scheduler, work_ns: int, works: int) -> list[int]:
    """Run until so many works ended; when each did."""
    _begin(engine, work_ns)
    ends_ns: list[int] = []
    while len(ends_ns) < works:
        end_ns = engine.next_end_ns()
        if end_ns is None:
            raise AssertionError("saturating clients always have work")
        ends_ns.append(end_ns)
        _go_on(engine, work_ns, end_ns)
    return ends_ns


def _follow(engine: Scheduler, work_ns: int, ends_ns: list[int]) -> None:
    _begin(engine, work_ns)
    for end_ns in ends_ns:
        _go_on(engine, work_ns, end_ns)


def _begin(engine: Scheduler, work_ns: int) -> None:
    for client in range(CLIENTS):
        # Of different lengths at first, so that they do not end together.
        engine.submit(ContextId(client), work_ns * (client + 1) // CLIENTS, 1.0)


def _go_on(engine: Scheduler, work_ns: int, to_ns: int) -> None:
    for ended in engine.advance(to_ns):
        engine.submit(ended.context, work_ns, 1.0)


if __name__ == "__main__":
    main()
