"""The measurement: which processes run when, and what is kept of it. What it means is elsewhere.

Two processes have a context each. The first sees by how much the free memory falls when the second
makes its own. Then both run the stamping kernel at the same time, with one warp and with the GPU
full; and, if levels are wanted, two new processes for each level, as a level holds for contexts
that are made after it.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from hal import TimeSliceLevel
from sim.calibrate.analysis import CannotTell, Stamps, analysed
from sim.calibrate.children import ChildFailed, Children
from sim.calibrate.edges import EdgeError, FreeBytes, Look, Open, SetLevel, Stamp, Target
from sim.gpu.calibration import FORMAT, Calibration, MeasuredSlices, MeasuredSwitches
from sim.gpu.profiles import MIB
from sim.study.sentences import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sim.calibrate.children import Child
    from sim.gpu.calibration import Spread

SPAN_MS = 1500.0
"""So long does a kernel run: some 360 slices of each process, or 25 of the longest level."""

LOOK_S, OPEN_S, CALL_S, LEVEL_S = 20.0, 20.0, 10.0, 15.0
"""A context takes 3 s at most where others measured it, with a driver that is not loaded more."""
_LEVELS = (TimeSliceLevel.SHORT, TimeSliceLevel.MEDIUM, TimeSliceLevel.LONG)


class Pair(BaseModel):
    """The stamps of two processes that ran at the same time."""

    model_config = ConfigDict(frozen=True)

    first: Stamps
    second: Stamps


class Evidence(BaseModel):
    """What was seen, before anything is concluded from it.

    `low` and `full` are with one warp and with the GPU full, `levels` with one warp at a level.
    """

    model_config = ConfigDict(frozen=True)

    target: Target
    context_bytes: int
    low: Pair
    full: Pair
    levels: dict[str, Pair] = {}
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure, until when.

    `until_s` is of `time.monotonic`. With `levels` they are set, and at the end `restored`. The
    edges are `MODULE:CLASS`.
    """

    until_s: float
    gpu: str | None = None
    levels: bool = False
    restored: TimeSliceLevel = TimeSliceLevel.DEFAULT
    span_ms: float = SPAN_MS
    cuda: str = "sim.calibrate.cuda:CudaEdge"
    driver: str = "sim.calibrate.driver:DriverEdge"
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


def measure(plan: Plan, tell: Callable[[str], None] = lambda _doing: None) -> Evidence:
    """Measure; raises `EdgeError` or `ChildFailed`, and leaves no process behind either way."""
    children = Children()
    try:
        with children:
            return _Measurement(plan, children, tell).result()
    except (EdgeError, ChildFailed) as error:
        if not children.stuck:
            raise
        stuck = ", ".join(map(str, sorted(children.stuck)))
        raise ChildFailed(
            f"{error}\nprocess {stuck} hangs in the driver and cannot be killed: the GPU may need "
            "a reset, or the machine a reboot"
        ) from error


class _Measurement:
    def __init__(self, plan: Plan, children: Children, tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._children = children
        self._tell = tell
        self._notes: list[str] = []

    def result(self) -> Evidence:
        self._tell("looking for the GPU")
        driver = self._children.start(
            "the driver's process", self._plan.driver, self._environment()
        )
        target = self._target(driver)
        with self._levels_put_back(driver, target):
            if self._plan.levels:
                self._set_level(driver, target, TimeSliceLevel.DEFAULT)
            context_bytes, (low, full) = self._pair(target, "default", (False, True))
            levels: dict[str, Pair] = {}
            for level in _LEVELS if self._plan.levels else ():
                name = level.name.lower()
                self._set_level(driver, target, level)
                _, (levels[name],) = self._pair(target, name, (False,))
        return Evidence(
            target=target,
            context_bytes=context_bytes,
            low=low,
            full=full,
            levels=levels,
            notes=tuple(self._notes),
        )

    def _target(self, driver: Child) -> Target:
        driver.ask(Look(gpu=self._plan.gpu))
        target = driver.answer(self._until(LOOK_S), "looking for the GPU").target
        if target is None:
            raise ChildFailed("the driver's process named no GPU")
        if self._plan.levels and not target.has_levels:
            raise EdgeError(
                f"{target.product} has no time-slice levels: measure it without --levels"
            )
        if target.others:
            others = counted(target.others, "other process", "other processes")
            self._notes.append(f"{others} had a context on the GPU while it was measured")
        return target

    def _pair(
        self, target: Target, level: str, runs: tuple[bool, ...]
    ) -> tuple[int, tuple[Pair, ...]]:
        """What the second context takes, and a pair of stamps for each run (full or not)."""
        environment = self._environment(target)
        both = [
            self._children.start(f"the {name} process", self._plan.cuda, environment)
            for name in ("first", "second")
        ]
        first, second = both
        self._tell(f"level {level}: making contexts")
        self._open(first)
        before_bytes = self._free_bytes(first)
        self._open(second)
        context_bytes = max(0, before_bytes - self._free_bytes(first))
        found = []
        for full in runs:
            what = "a GPU that is full" if full else "one warp each"
            self._tell(f"level {level}: {self._plan.span_ms / 1000:g} s of slices, {what}")
            found.append(self._stamped(first, second, full=full))
        self._children.end(*both)
        return context_bytes, tuple(found)

    def _stamped(self, first: Child, second: Child, *, full: bool) -> Pair:
        for child in (first, second):
            child.ask(Stamp(span_ms=self._plan.span_ms, full=full))
        # The driver compiles the kernel before the first one.
        until_s = self._until(CALL_S + self._plan.span_ms / 1000)
        stamps = [child.answer(until_s, "its kernel").stamps for child in (first, second)]
        if stamps[0] is None or stamps[1] is None:
            raise ChildFailed("a process answered without stamps")
        return Pair(first=stamps[0], second=stamps[1])

    def _open(self, child: Child) -> None:
        child.ask(Open())
        child.answer(self._until(OPEN_S), "making a context")

    def _free_bytes(self, child: Child) -> int:
        child.ask(FreeBytes())
        found = child.answer(self._until(CALL_S), "reading free memory").free_bytes
        if found is None:
            raise ChildFailed("a process answered without free memory")
        return found

    @contextmanager
    def _levels_put_back(self, driver: Child, target: Target) -> Iterator[None]:
        if not self._plan.levels:
            yield
            return
        try:
            yield
        finally:
            # After the time for measuring, too: it is what must not be left undone.
            driver.ask(SetLevel(uuid=target.uuid, level=self._plan.restored))
            driver.answer(time.monotonic() + LEVEL_S, "putting the time slice back")

    def _set_level(self, driver: Child, target: Target, level: TimeSliceLevel) -> None:
        driver.ask(SetLevel(uuid=target.uuid, level=level))
        driver.answer(self._until(LEVEL_S), "setting the time slice")

    def _until(self, for_s: float) -> float:
        return min(self._plan.until_s, time.monotonic() + for_s)

    def _environment(self, target: Target | None = None) -> dict[str, str]:
        environment = dict(self._plan.environment)
        if target is None:
            return environment
        environment["CUDA_VISIBLE_DEVICES"] = target.uuid
        # An MPS server would let both run side by side: this folder has none.
        environment["CUDA_MPS_PIPE_DIRECTORY"] = "/nonexistent"
        return environment


def calibration_of(evidence: Evidence) -> Calibration:
    """What the evidence says; raises `CannotTell`. A level of which it says nothing is a note."""
    target, notes = evidence.target, list(evidence.notes)
    low = analysed(evidence.low.first, evidence.low.second)
    full = analysed(evidence.full.first, evidence.full.second)
    levels: dict[str, Spread] = {}
    for name, pair in evidence.levels.items():
        try:
            levels[name] = analysed(pair.first, pair.second).slice_us
        except CannotTell as error:
            notes.append(f"level {name}: {error}")
    if full.switch_us.median < low.switch_us.low:
        notes.append("a switch took no longer with the GPU full than with one warp")
    return Calibration(
        format=FORMAT,
        measured_on=target.today,
        model=target.model,
        product=target.product,
        driver_version=target.driver_version,
        slice_us=MeasuredSlices(default=low.slice_us, **levels),
        switch_us=MeasuredSwitches(low=low.switch_us, full=full.switch_us),
        context_mib=round(evidence.context_bytes / MIB, 1),
        other_work=round(max(low.other_work, full.other_work), 4),
        lost_stamps=low.lost + full.lost,
        notes=tuple(notes),
    )
