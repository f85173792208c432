"""Stamps of two kernels that share a GPU in a known way: round robin, with what goes wrong."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.calibrate.analysis import LEAST_GAP_NS, Stamps

if TYPE_CHECKING:
    from collections.abc import Iterator

US, MS = 1_000, 1_000_000
BEGIN_NS = 1_764_500_000_000_000_000


@dataclass(frozen=True, slots=True)
class Truth:
    """How time is shared. `others` processes take a turn in each round, each with chance `busy`.

    Slices and switches vary by `jitter` around their means; in the second half of the time switches
    take `slower` times as long (clocks that fell). A slice has `interrupts` short gaps on average.
    The clock counts in steps of `tick_ns`. The second kernel begins `skew_ms` after the first.
    """

    slice_us: float = 2048.0
    switch_us: float = 150.0
    jitter: float = 0.01
    others: int = 0
    busy: float = 1.0
    slower: float = 1.0
    interrupts: float = 0.0
    tick_ns: int = 32
    span_ms: float = 1500.0
    skew_ms: float = 3.0


def stamped(truth: Truth, seed: int = 1) -> tuple[Stamps, Stamps]:
    chance = random.Random(seed)
    turns = list(_turns(truth, chance))
    first, second = (
        _seen(
            truth,
            chance,
            [turn for owner, *turn in turns if owner == one],
            BEGIN_NS + one * truth.skew_ms * MS,
        )
        for one in (0, 1)
    )
    return first, second


def _turns(truth: Truth, chance: random.Random) -> Iterator[tuple[int, float, float]]:
    """Who is on the GPU, from when to when."""
    now_ns, ends_ns = float(BEGIN_NS), BEGIN_NS + (truth.span_ms + truth.skew_ms) * MS
    while now_ns < ends_ns:
        for owner in range(2 + truth.others):
            if owner >= 2 and chance.random() >= truth.busy:
                continue
            end_ns = now_ns + truth.slice_us * US * chance.gauss(1, truth.jitter)
            yield owner, now_ns, end_ns
            slower = truth.slower if end_ns > (BEGIN_NS + ends_ns) / 2 else 1.0
            switch_us = truth.switch_us * slower * max(0.1, chance.gauss(1, truth.jitter))
            now_ns = end_ns + switch_us * US


def _seen(truth: Truth, chance: random.Random, turns: list[list[float]], begin_ns: float) -> Stamps:
    """The stamps of a kernel that has these turns from a moment on."""
    own = [
        (begin, end) for begin, end in turns if begin_ns <= begin <= begin_ns + truth.span_ms * MS
    ]
    gaps: list[tuple[int, int]] = []
    for number, (begin, end) in enumerate(own):
        if number:
            gaps.append((_tick(truth, own[number - 1][1]), _tick(truth, begin)))
        if truth.tick_ns >= LEAST_GAP_NS:
            # Each step of such a clock looks like a gap.
            steps = range(_tick(truth, begin), _tick(truth, end), truth.tick_ns)
            gaps += [(step, step + truth.tick_ns) for step in steps]
            continue
        at_ns = begin + 50 * US
        for _ in range(int(truth.interrupts) + (chance.random() < truth.interrupts % 1)):
            at_ns += chance.uniform(0, (end - begin) / (2 * truth.interrupts + 2))
            length_ns = chance.uniform(1.2 * LEAST_GAP_NS, 40 * US)
            gaps.append((_tick(truth, at_ns), _tick(truth, at_ns + length_ns)))
            at_ns += length_ns + US
    return Stamps(
        begin_ns=_tick(truth, own[0][0]),
        end_ns=_tick(truth, own[-1][1]),
        seen=len(gaps),
        gaps=tuple(gaps),
    )


def _tick(truth: Truth, at_ns: float) -> int:
    return int(at_ns) // truth.tick_ns * truth.tick_ns


def without(stamps: Stamps, share: float, seed: int = 1) -> Stamps:
    """Without this share of its gaps, and nobody knows which."""
    chance = random.Random(seed)
    kept = tuple(gap for gap in stamps.gaps if chance.random() >= share)
    return stamps.model_copy(update={"gaps": kept, "seen": len(kept)})


def cut(stamps: Stamps, room: int) -> Stamps:
    """As a kernel leaves them that has room for so many."""
    return stamps.model_copy(update={"gaps": stamps.gaps[:room]})
