"""Speed of the simulator: scenarios in virtual time, a replay, and what skipping slices gains."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks import simulator, slices
from benchmarks.calls import Subject, in_turns
from benchmarks.results import Floors, Named, measurement, one_round_each

if TYPE_CHECKING:
    from benchmarks.results import Measurement
    from benchmarks.suites import Context

SUITE = "simulator"
PYTHON = "a loop of Python"
_LOOPS = 2_000_000
_QUICK_SHARE = 0.2
_WORKS = 200
_WORK_MS = 1_000


def measure(context: Context) -> list[Measurement]:
    """All of it; the floor is a plain loop, which shows how fast the interpreter was meanwhile."""
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
    found = in_turns(
        subjects,
        context.effort.turns,
        context.chance(SUITE),
        lambda share: context.progress("simulator", share),
    )
    floor = found.pop(PYTHON)
    figures = [measurement(Named(SUITE, PYTHON, "an interpreter", "s"), floor, context.seed)]
    for name, rounds in found.items():
        wall = Named(SUITE, f"{name}, wall time", "simulator", "s")
        figures.append(measurement(wall, rounds, context.seed, Floors({PYTHON: floor})))
        rate = Named(SUITE, f"{name}, events", "simulator", "events/s")
        figures.append(measurement(rate, events[name], context.seed))
        if name in speeds:
            speed = Named(SUITE, f"{name}, virtual time", "simulator", "s/s")
            figures.append(measurement(speed, speeds[name], context.seed))
    return [*figures, _skipping(context)]


def _skipping(context: Context) -> Measurement:
    """Whole rounds of slices at once against each slice for itself."""
    one = slices.measure(_WORK_MS, _WORKS, context.effort.turns)
    named = Named(SUITE, f"works of {_WORK_MS} ms", "simulator", "ms")
    floors = Floors({"each slice": one_round_each([one.stepwise_ms])})
    return measurement(named, one_round_each([one.skipping_ms]), context.seed, floors)


def _loop() -> list[float]:
    started_s = time.perf_counter()
    total = 0
    for number in range(_LOOPS):
        total += number & 7
    return [time.perf_counter() - started_s]
