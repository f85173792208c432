"""A whole run: what to measure and how much of it, suite after suite, to one result."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from benchmarks import SUITES
from benchmarks.machine import this_machine
from benchmarks.results import SCHEMA, Run
from benchmarks.servers import ENGINES, DidNotStart
from benchmarks.suites import Context, Effort
from benchmarks.targets import judged
from gpuplugin.rpc.client import CallFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.calls import ClientName
    from benchmarks.plugins import PluginSpec
    from benchmarks.results import Measurement
    from gpuplugin.rpc import EngineName

    Measure: TypeAlias = Callable[[Context], list[Measurement]]

FULL = Effort(
    rounds=60, calls=50, busy_rounds=10, busy_calls=400, prefer_rounds=25, starts=12,
    fault_starts=4, idle_s=20.0, memory_calls=10_000, turns=3,
)  # fmt: skip
QUICK = Effort(
    rounds=20, calls=20, busy_rounds=6, busy_calls=100, prefer_rounds=6, starts=3,
    fault_starts=1, idle_s=2.0, memory_calls=10_000, turns=1, replicas=(10, 1000),
)  # fmt: skip


def tiny(calls: int) -> Effort:
    """So few calls that only the program is tested, not the plugin."""
    return Effort(
        rounds=3, calls=calls, busy_rounds=2, busy_calls=calls, prefer_rounds=2, starts=1,
        fault_starts=1, idle_s=0.2, memory_calls=calls, turns=1, replicas=(10,),
    )  # fmt: skip


class Failed(Exception):
    """The run could not be finished; the text says why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure; `calls` (None: as many as usual) is for trying the program out."""

    suites: Sequence[str] = SUITES
    engines: Sequence[EngineName] = ENGINES
    others: Sequence[PluginSpec] = ()
    client: ClientName = "raw"
    seed: int = 1
    quick: bool = False
    calls: int | None = None
    options: Sequence[str] = ()


def run(wanted: Wanted, progress: Callable[[str, float], None] = lambda _what, _share: None) -> Run:
    """Measure; `progress` is called with what is measured and the share (0 to 1) that is done.

    Raises:
        Failed: a server or plugin did not start, or went away.
    """
    effort = QUICK if wanted.quick else FULL
    if wanted.calls is not None:
        effort = tiny(wanted.calls)
    load_before = os.getloadavg()[0]
    date = datetime.now(UTC).isoformat(timespec="seconds")
    figures: list[Measurement] = []
    notes: list[str] = []
    for suite in wanted.suites:
        # Each suite has its own folder, so that socket names cannot clash.
        with tempfile.TemporaryDirectory(prefix="gp", ignore_cleanup_errors=True) as name:
            context = Context(
                suite=suite,
                effort=effort,
                folder=Path(name),
                engines=tuple(wanted.engines),
                others=tuple(wanted.others),
                client=wanted.client,
                seed=wanted.seed,
                quick=wanted.quick or wanted.calls is not None,
                progress=progress,
                notes=notes,
            )
            measure: Measure = import_module(f"benchmarks.suites.{suite}").measure
            try:
                figures += measure(context)
            except (CallFailed, DidNotStart) as error:
                raise Failed(f"suite {suite}: {error}") from error
    return Run(
        schema=SCHEMA,
        date=date,
        seed=wanted.seed,
        options=tuple(wanted.options),
        machine=this_machine(load_before),
        notes=tuple(notes),
        figures=tuple(judged(figure) for figure in figures),
    )


def misses(found: Run) -> int:
    return sum(any(not one.met for one in figure.verdicts) for figure in found.figures)
