"""Speed of the simulator: scenarios in virtual time, a replay, and what skipping slices gains."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks import simulator
from benchmarks.calls import Subject
from sim.gpu.scheduler import NS_PER_MS, ContextId
from sim.gpu.timeslicing import StepwiseTimeSlicing, TimeSlicing

if TYPE_CHECKING:
    from benchmarks.results import Measurement
    from benchmarks.suites import Context
    from sim.gpu.scheduler import Scheduler

PYTHON = "a loop of Python"
_LOOPS = 2_000_000
_QUICK_SHARE = 0.2
_WORKS = 200
_WORK_NS = 1_000 * NS_PER_MS
_CLIENTS = 8


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
    """Time slicing that skips whole rounds, compared with the one that follows each slice."""
    ends_ns = _skip(TimeSlicing())
    skipping_ms, stepwise_ms = [], []
    for _ in range(context.effort.turns):
        fast, plain = TimeSlicing(), StepwiseTimeSlicing()
        started_s = time.perf_counter()
        _skip(fast)
        between_s = time.perf_counter()
        _follow(plain, ends_ns)
        skipping_ms.append([(between_s - started_s) * 1000])
        stepwise_ms.append([(time.perf_counter() - between_s) * 1000])
        if fast.state != plain.state:
            raise AssertionError("the implementations differ")
    case = f"works of {_WORK_NS // NS_PER_MS} ms"
    return context.figure(case, "simulator", "ms", skipping_ms, {"each slice": stepwise_ms})


def _skip(engine: Scheduler) -> list[int]:
    """When each of `_WORKS` works ended, if whole rounds of slices are skipped."""
    _begin(engine)
    ends_ns: list[int] = []
    while len(ends_ns) < _WORKS:
        end_ns = engine.next_end_ns()
        if end_ns is None:
            raise AssertionError("saturating clients always have work")
        ends_ns.append(end_ns)
        _go_on(engine, end_ns)
    return ends_ns


def _follow(engine: Scheduler, ends_ns: list[int]) -> None:
    """Go to the ends, which are given, so that only following slices counts."""
    _begin(engine)
    for end_ns in ends_ns:
        _go_on(engine, end_ns)


def _begin(engine: Scheduler) -> None:
    for client in range(_CLIENTS):
        # Of different lengths at first, so that they do not end together.
        engine.submit(ContextId(client), _WORK_NS * (client + 1) // _CLIENTS, 1.0)


def _go_on(engine: Scheduler, to_ns: int) -> None:
    for ended in engine.advance(to_ns):
        engine.submit(ended.context, _WORK_NS, 1.0)


def _loop() -> list[float]:
    started_s = time.perf_counter()
    total = 0
    for number in range(_LOOPS):
        total += number & 7
    return [time.perf_counter() - started_s]
