"""Slices and switches from the stamps of two processes: pure, times in nanoseconds.

Each process runs one kernel that reads the GPU's clock without a pause, and keeps a stamp wherever
two readings are further apart than `LEAST_GAP_NS`: from when to when it did not run. The clock is
that of the GPU, so both processes' stamps are on one time line. Between two gaps a process had a
slice; between the end of one's run and the begin of the other's lies a switch.

What this has to bear: gaps that are no preemption (interrupts of the SM, memory), a third process
that takes its turn now and then or always, clocks that change on the way, and stamps that were
lost.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from sim.gpu.calibration import Spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LEAST_GAP_NS = 10_000
"""Two readings of the clock are less than 1 us apart while the kernel runs."""

NOISE_NS = 60_000
"""A gap in which the other process did not run and that is shorter than this is no preemption: it
would have to hold two switches, and the shortest switch that was published takes 59 us."""

SIDE_BY_SIDE_NS = 20_000
"""Runs that overlap by more than this did not happen so: a stamp between them is missing."""

LEAST_SAMPLES = 10
MOST_SWITCH_NS = 1_000_000
"""What passes for a switch and is longer hides the slice of another process."""

_TOO_MANY_TORN = 0.5
_US = 1_000


class Stamps(BaseModel):
    """What one kernel saw: when it began and ended, and its gaps as (from, to), in order.

    `seen` is the number of gaps that there were: more than `gaps` has if there was no room.
    """

    model_config = ConfigDict(frozen=True)

    begin_ns: int
    end_ns: int
    seen: int
    gaps: tuple[tuple[int, int], ...]

    @property
    def lost(self) -> int:
        return max(0, self.seen - len(self.gaps))


class CannotTell(Exception):
    """The stamps do not show how time is shared; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """Slices and switches in microseconds.

    `other_work` is the share of the time in which neither of the two ran and that no switch
    explains; `torn` counts runs whose stamps contradict each other.
    """

    slice_us: Spread
    switch_us: Spread
    other_work: float
    torn: int
    lost: int


@dataclass(frozen=True, slots=True)
class _Run:
    """One turn of a process; `whole` if a preemption bounds it on both sides."""

    owner: int
    begin_ns: int
    end_ns: int
    whole: bool

    @property
    def length_ns(self) -> int:
        return self.end_ns - self.begin_ns


def analysed(first: Stamps, second: Stamps) -> Sharing:
    """How the two shared the GPU; raises `CannotTell`."""
    raw = (list(_runs(0, first)), list(_runs(1, second)))
    turns = (_without_noise(raw[0], raw[1]), _without_noise(raw[1], raw[0]))
    begin_ns = max(runs[0].begin_ns for runs in turns)
    end_ns = min(runs[-1].end_ns for runs in turns)
    line = sorted(
        (
            run
            for runs in turns
            for run in runs
            if begin_ns <= run.begin_ns and run.end_ns <= end_ns
        ),
        key=lambda run: run.begin_ns,
    )
    torn = _torn(line)
    if len(torn) >= _TOO_MANY_TORN * max(1, len(line)):
        raise CannotTell(
            "both processes ran at the same time: their GPU is not shared by time slices. End the "
            "MPS server, and see that the processes are on one GPU"
        )
    slices_ns = [run.length_ns for run in line if run.whole and run not in torn]
    slice_us = _spread(slices_ns, "slices")
    pairs = [
        (before, after)
        for before, after in pairwise(line)
        if before not in torn and after not in torn
    ]
    between_ns = [
        after.begin_ns - before.end_ns for before, after in pairs if before.owner != after.owner
    ]
    switch_us = _switches(between_ns, slice_us)
    away_ns = sum(
        max(0.0, after.begin_ns - before.end_ns - switch_us.high * _US) for before, after in pairs
    )
    return Sharing(
        slice_us,
        switch_us,
        min(1.0, away_ns / max(1, end_ns - begin_ns)) if away_ns > slice_us.median * _US else 0.0,
        len(torn),
        first.lost + second.lost,
    )


def _runs(owner: int, stamps: Stamps) -> Iterator[_Run]:
    """What lies between the gaps. After the last gap that was kept nothing is known."""
    begin_ns, bounded = stamps.begin_ns, False
    for from_ns, to_ns in stamps.gaps:
        if from_ns < begin_ns or to_ns <= from_ns:
            # The clock was set: what was running then has no length.
            begin_ns, bounded = to_ns, False
            continue
        yield _Run(owner, begin_ns, from_ns, bounded)
        begin_ns, bounded = to_ns, True
    if not stamps.lost and stamps.end_ns >= begin_ns:
        yield _Run(owner, begin_ns, stamps.end_ns, whole=False)


def _without_noise(own: Sequence[_Run], other: Sequence[_Run]) -> list[_Run]:
    """Runs that a gap parts in which the other process had no turn, made one again."""
    if not own or not other:
        raise CannotTell("a process kept no stamps: it was ended before it ran, or its clock stood")
    begins = iter(other)
    coming = next(begins, None)
    made = [own[0]]
    for run in own[1:]:
        last = made[-1]
        while coming is not None and coming.end_ns <= last.end_ns:
            coming = next(begins, None)
        elsewhere = coming is not None and coming.begin_ns < run.begin_ns
        if elsewhere or not 0 <= run.begin_ns - last.end_ns < NOISE_NS:
            made.append(run)
        else:
            made[-1] = _Run(run.owner, last.begin_ns, run.end_ns, last.whole and run.whole)
    return made


def _torn(line: Sequence[_Run]) -> set[_Run]:
    """Runs that cannot have happened: only one process is on the GPU at a time.

    One that holds a whole run of the other lacks a gap, so it is the one that is wrong.
    """
    torn: set[_Run] = set()
    for number, run in enumerate(line):
        for later in line[number + 1 :]:
            if later.begin_ns >= run.end_ns - SIDE_BY_SIDE_NS:
                break
            if later.owner == run.owner:
                continue
            torn.add(run)
            if later.end_ns > run.end_ns + SIDE_BY_SIDE_NS:
                torn.add(later)
    return torn


def _switches(between_ns: Sequence[int], slice_us: Spread) -> Spread:
    """Switches from one to the other, without those in which a third process had its turn."""
    if not between_ns:
        raise CannotTell("no process followed the other: they did not run at the same time")
    quick_ns = sorted(between_ns)[len(between_ns) // 10]
    most_ns = quick_ns + slice_us.median * _US / 2
    found = _spread([gap_ns for gap_ns in between_ns if gap_ns <= most_ns], "switches")
    if found.median > min(MOST_SWITCH_NS / _US, slice_us.median):
        raise CannotTell(
            f"{found.median:.0f} us lie between one process and the other: another process has the "
            "GPU in between. End what uses it, and measure again"
        )
    return found


def _spread(samples_ns: Sequence[int], what: str) -> Spread:
    if len(samples_ns) < LEAST_SAMPLES:
        raise CannotTell(
            f"only {len(samples_ns)} whole {what} were seen, {LEAST_SAMPLES} are needed: the GPU "
            "was busy with other work, or the processes did not run at the same time"
        )
    low, median, high = statistics.quantiles(samples_ns, n=4, method="inclusive")
    return Spread(
        median=round(median / _US, 3),
        low=round(max(0.0, low) / _US, 3),
        high=round(max(0.0, high) / _US, 3),
        count=len(samples_ns),
    )
