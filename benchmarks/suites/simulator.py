"""Speed of the simulator: scenarios in virtual time, a replay, and what skipping slices gains."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks import simulator, slices
from benchmarks.calls import Subject

if TYPE_CHECKING:
    from benchmarks.results import Measurement
    from benchmarks.suites import Context

PYTHON = "a loop of Python"
_LOOPS = 2_000_000
_QUICK_SHARE = 0.2
_WORKS = 200
_WORK_MS = 1_000


def measure(context: Context) -> list[Measurement]:
    """The floor is a plain loop, which shows how fast the interpreter was meanwhile."""
    events: dict[str, list[list[float]]] = {}
    speeds: dict[str, list[list[float]]] = {}

    def scenario(name: str, until_s: float) -> Subject:
        def sample() -> list[float]:
            run = simulator.in_own_process(simulator.run_scenario, name, until_s)
            events.setdefault(name, []).append([run.events / run.wall_s])
            speeds.setdefault(name, []).append([run.simulated_s / run.wall_s])
            return [run.wall_s]

        return Subject(name, sample)

    def replay() -> list[float]:
        run = simulator.in_own_process(simulator.run_replay, None, None)
        events.setdefault("replay (made up)", []).append([run.events / run.wall_s])
        return [run.wall_s]

    subjects = [Subject(PYTHON, _loop)]
    for name, until_s in simulator.SCENARIOS:
        limit_s = until_s * (_QUICK_SHARE if context.quick else 1)
        subjects.append(scenario(name, limit_s))
    if not context.quick:
        subjects.append(Subject("replay (made up)", replay))
    found = context.turns(subjects, context.effort.turns, "simulator")
    floor = found.pop(PYTHON)
    figures = [context.figure(PYTHON, "an interpreter", "s", floor)]
    for name, rounds in found.items():
        wall = context.figure(f"{name}, wall time", "simulator", "s", rounds, {PYTHON: floor})
        rate = context.figure(f"{name}, events", "simulator", "events/s", events[name])
        figures += [wall, rate]
        if name in speeds:
            case = f"{name}, virtual time"
            figures.append(context.figure(case, "simulator", "s/s", speeds[name]))
    return [*figures, _skipping(context)]


def _skipping(context: Context) -> Measurement:
    """Skipping whole rounds of slices, compared with following each slice."""
    one = slices.measure(_WORK_MS, _WORKS, context.effort.turns)
    floors = {"each slice": [[one.stepwise_ms]]}
    case = f"works of {_WORK_MS} ms"
    return context.figure(case, "simulator", "ms", [[one.skipping_ms]], floors)


def _loop() -> list[float]:
    started_s = time.perf_counter()
    total = 0
    for number in range(_LOOPS):
        total += number & 7
    return [time.perf_counter() - started_s]
