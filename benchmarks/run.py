"""A whole run: suite after suite, to one result."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.client import CallError, ConnectionLost
from benchmarks.context import FULL, QUICK, Context, tiny
from benchmarks.engines import ENGINES
from benchmarks.machine import this_machine
from benchmarks.results import SCHEMA, Run
from benchmarks.servers import DidNotStart
from benchmarks.suites import SUITES, measure
from benchmarks.targets import judged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.calls import ClientName
    from benchmarks.plugins import PluginSpec


class Failed(Exception):
    """A run that could not be finished; the text says why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure; `calls` (None: as many as usual) is for trying the program out."""

    suites: Sequence[str] = tuple(SUITES)
    engines: Sequence[str] = tuple(ENGINES)
    others: Sequence[PluginSpec] = ()
    client: ClientName = "raw"
    seed: int = 1
    quick: bool = False
    calls: int | None = None
    options: Sequence[str] = ()


def run(wanted: Wanted, tell: Callable[[str, float], None] = lambda _what, _share: None) -> Run:
    """Measure; `tell` is told what is being measured and which share (0 to 1) of that is done.

    Raises:
        Failed: a server or plugin did not start, or went away.
    """
    effort = QUICK if wanted.quick else FULL
    if wanted.calls is not None:
        effort = tiny(wanted.calls)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    figures = []
    notes: list[str] = []
    for suite in wanted.suites:
        # A folder of its own for each suite: sockets of one are not in the way of the next.
        with tempfile.TemporaryDirectory(prefix="gp", ignore_cleanup_errors=True) as name:
            context = Context(
                effort=effort,
                folder=Path(name),
                engines=tuple(wanted.engines),
                others=tuple(wanted.others),
                client=wanted.client,
                seed=wanted.seed,
                quick=wanted.quick or wanted.calls is not None,
                tell=tell,
                notes=notes,
            )
            try:
                figures += measure(suite, context)
            except (CallError, ConnectionLost, DidNotStart) as error:
                raise Failed(f"suite {suite}: {error}") from error
    return Run(
        schema=SCHEMA,
        date=date,
        seed=wanted.seed,
        options=tuple(wanted.options),
        machine=this_machine(),
        notes=tuple(notes),
        figures=tuple(judged(figure) for figure in figures),
    )


def misses(found: Run) -> int:
    """Figures that miss a target."""
    return sum(any(not one.met for one in figure.verdicts) for figure in found.figures)
