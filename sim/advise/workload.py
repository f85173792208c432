"""Workloads as advice needs them: how they use a GPU, and which of that is known or assumed."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeAlias

from hal import GIB

Arrival: TypeAlias = Literal["closed", "open"]
"""closed: the next request comes some time after the last one was done, as from a user who waits.
open: requests come at random, whatever becomes of those before."""

MOST_PODS = 1000
MOST_BUSY = 0.98
"""Nothing is busier, for requests have some time between them."""
HOUR_S = 3600.0


class WrongWorkload(ValueError):
    """Text that is no workload; the message says what to write."""


@dataclass(frozen=True, slots=True)
class Workload:
    """`count` equal pods: each uses a GPU for `busy_ms` (alone) every `period_ms` on average.

    `memory_gib` are samples of what one pod holds, ascending; one value for a constant. Each is the
    most of `memory_window_s`. What its context takes comes on top, unless the samples have it
    (`with_context`). `occupancy` (0 to 1) is how much of the GPU its kernels fill, `mps_share` by
    how much it slows others down under MPS (None: the usual one). It has work for `active` of the
    time (0 to 1), and holds its memory meanwhile. `assumed` names what is not known, `source` says
    where the rest is from.
    """

    name: str
    busy_ms: float
    period_ms: float
    memory_gib: tuple[float, ...]
    count: int = 1
    occupancy: float = 1.0
    mps_share: float | None = None
    arrival: Arrival = "closed"
    active: float = 1.0
    with_context: bool = False
    memory_window_s: float = HOUR_S
    assumed: frozenset[str] = frozenset({"occupancy", "mps_share", "arrival"})
    source: str = "command line"

    @property
    def busy_share(self) -> float:
        """Share of the time in which one pod alone keeps a GPU busy."""
        return self.busy_ms / self.period_ms

    def held_bytes(self, memory_gib: float, context_bytes: int) -> int:
        """What one pod holds with a sample, its context included."""
        return round(memory_gib * GIB) + (0 if self.with_context else context_bytes)

    def as_json(self) -> dict[str, object]:
        """All fields, for `json`."""
        return {**asdict(self), "assumed": sorted(self.assumed)}


PRESETS: dict[str, Workload] = {
    one.name: replace(
        one,
        assumed=frozenset({"busy_ms", "period_ms", "memory", "occupancy", "mps_share", "arrival"}),
        source="preset",
    )
    for one in (
        Workload("notebook", 400.0, 20_000.0, (4.0,), occupancy=0.7),
        Workload("llm-decode", 25.0, 40.0, (14.0,), occupancy=0.6, arrival="open"),
        Workload("training", 250.0, 260.0, (16.0,), occupancy=1.0),
        Workload("batch-inference", 40.0, 50.0, (6.0,), occupancy=0.8),
    )
}
"""Orders of magnitude for a first look, not measurements: replace them by your own."""

_FORM = re.compile(
    r"(?P<name>[^:/]+):(?P<busy>[^:/]+)/(?P<period>[^:/]+)/(?P<memory>[^:/]+)(?::(?P<count>[^:/]+))?"
)


def parsed_workload(text: str) -> Workload:
    """`name:busy-ms/period-ms/GiB[:count]`, or `preset[:count]`; raises `WrongWorkload`."""
    name, _, count = text.partition(":")
    if name in PRESETS and "/" not in text:
        return replace(PRESETS[name], count=_count(count or "1", text))
    found = _FORM.fullmatch(text)
    if found is None:
        raise WrongWorkload(
            f"--workload {text}: write NAME:BUSY-MS/PERIOD-MS/GIB[:COUNT], such as api:15/100/2:8, "
            f"or one of {', '.join(PRESETS)} with [:COUNT]"
        )
    busy_ms, period_ms = _number(found["busy"], text), _number(found["period"], text)
    memory_gib = _number(found["memory"], text)
    if not 0.01 <= busy_ms <= period_ms <= 3_600_000:
        raise WrongWorkload(
            f"--workload {text}: {busy_ms:g} ms of work every {period_ms:g} ms cannot be: give at "
            "least 0.01 ms, and no more work than the period has"
        )
    if not 0 <= memory_gib <= 1024:
        raise WrongWorkload(f"--workload {text}: {memory_gib:g} GiB: give a number from 0 to 1024")
    return Workload(
        found["name"], busy_ms, period_ms, (memory_gib,), _count(found["count"] or "1", text)
    )


def _number(text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise WrongWorkload(f"--workload {whole}: {text!r} is no number")
    return value


def _count(text: str, whole: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= MOST_PODS:
        raise WrongWorkload(
            f"--workload {whole}: {text!r} pods: give a number from 1 to {MOST_PODS}"
        )
    return int(text)
