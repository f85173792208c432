"""The shapes of Allocate requests that plugins are compared in, and on which cores that happens."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.devices import allocate_request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from random import Random


@dataclass(frozen=True, slots=True)
class Shape:
    """So many containers with so many devices each; `repeats`: the same request at each call."""

    name: str
    devices: int
    containers: int = 1
    repeats: bool = False

    def request(self, ids: Sequence[str], chance: Random) -> bytes:
        chosen = chance.sample(ids, self.devices * self.containers)
        pieces = [
            chosen[first : first + self.devices] for first in range(0, len(chosen), self.devices)
        ]
        # Serialised containers concatenate (proto3 encoding).
        return b"".join(map(allocate_request, pieces))

    def requests(self, ids: Sequence[str], chance: Random, count: int) -> list[bytes]:
        """What a round of calls asks for."""
        if self.repeats:
            return [self.request(ids, chance)] * count
        return [self.request(ids, chance) for _ in range(count)]


SHAPES = (
    Shape("1 device, same", 1, repeats=True),
    Shape("1 device", 1),
    Shape("2 devices", 2),
    Shape("8 devices", 8),
    Shape("4 containers", 1, containers=4),
)


def equally_long(ids: Iterable[str]) -> list[str]:
    """The ids of the most frequent length, so that all requests of a shape are equally long."""
    ids = list(ids)
    length, _ = Counter(map(len, ids)).most_common(1)[0]
    return [one for one in ids if len(one) == length]


def placements() -> tuple[str, ...]:
    """Those that there can be here: a table must not say two cores where there is one."""
    return ("two cores", "one core") if len(os.sched_getaffinity(0)) > 1 else ("one core",)


@contextmanager
def placed(placement: str, pids: Iterable[int]) -> Iterator[None]:
    """This thread on the first core, and processes on the same one or on the second, meanwhile."""
    before = os.sched_getaffinity(0)
    first, *others = sorted(before)
    theirs = others[0] if placement == "two cores" else first
    pids = list(pids)
    os.sched_setaffinity(0, {first})
    _put(pids, {theirs})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        _put(pids, before)


def _put(pids: Iterable[int], cores: set[int]) -> None:
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*"):
            with suppress(OSError):  # it has ended meanwhile
                os.sched_setaffinity(int(task.name), cores)
