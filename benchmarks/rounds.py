"""Measures several things in turns, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from random import Random


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that can be measured: `sample` returns one round of samples, in any unit."""

    name: str
    sample: Callable[[], list[float]]


def in_turns(
    subjects: Sequence[Subject],
    rounds: int,
    chance: Random,
    tell: Callable[[float], None] = lambda _share: None,
) -> dict[str, list[list[float]]]:
    """Samples of each subject by round; every round has its own order. `tell` gets 0 to 1."""
    found: dict[str, list[list[float]]] = {subject.name: [] for subject in subjects}
    order = list(subjects)
    with _no_collections():
        for number in range(rounds):
            chance.shuffle(order)
            for subject in order:
                found[subject.name].append(subject.sample())
            gc.collect(0)
            tell((number + 1) / rounds)
    return found


@contextmanager
def _no_collections() -> Iterator[None]:
    """Garbage of the measuring process is collected between rounds, not in them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
