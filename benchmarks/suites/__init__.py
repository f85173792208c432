"""The suites. Each is a module with `measure(context)`, which returns figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from benchmarks.calls import in_turns
from benchmarks.plugins import PluginSpec, own_plugin
from benchmarks.results import Estimate, Interval, Measurement, measurement
from benchmarks.servers import ENGINES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from benchmarks.calls import ClientName, Subject
    from benchmarks.plugins import Node
    from benchmarks.results import Rounds, Statistic
    from gpuplugin.rpc import EngineName


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured: `calls` of each thing in each of `rounds`, and so on."""

    rounds: int
    calls: int
    busy_rounds: int
    busy_calls: int
    prefer_rounds: int
    starts: int
    fault_starts: int
    """Starts of a plugin, after each of which every GPU has a fault."""
    idle_s: float
    memory_calls: int
    turns: int
    """Runs of each scenario of the simulator."""
    replicas: tuple[int, ...] = (1, 10, 100, 1000)


@dataclass(frozen=True, slots=True)
class Context:
    """What a suite needs; `folder` is an empty one with a short path, for sockets."""

    suite: str
    effort: Effort
    folder: Path
    engines: tuple[EngineName, ...] = ENGINES
    others: tuple[PluginSpec, ...] = ()
    client: ClientName = "raw"
    seed: int = 1
    quick: bool = False
    progress: Callable[[str, float], None] = lambda _what, _share: None
    notes: list[str] = field(default_factory=list)

    def turns(
        self, subjects: Sequence[Subject], rounds: int, what: str, chance: Random | None = None
    ) -> dict[str, list[list[float]]]:
        """Samples of each subject by round, measured in turns; `what` is shown meanwhile."""
        return in_turns(
            subjects,
            rounds,
            chance or self.chance(self.suite),
            lambda share: self.progress(what, share),
        )

    def figure(
        self,
        case: str,
        subject: str,
        unit: str,
        rounds: Rounds,
        floors: Mapping[str, Rounds] | None = None,
        *,
        p99_floors: Collection[str] = (),
        of: Statistic = "p50",
        family: str = "",
    ) -> Measurement:
        """A figure of the suite; see `benchmarks.results.measurement`."""
        return measurement(
            self.suite, case, subject, unit, rounds, self.seed, floors,
            p99_floors=p99_floors, of=of, family=family,
        )  # fmt: skip

    def number(self, case: str, subject: str, unit: str, value: float) -> Measurement:
        """A figure of the suite that is one number, without an interval."""
        only = Estimate(value, Interval(None, None))
        return Measurement(self.suite, case, subject, unit, 1, only)

    def chance(self, name: str) -> Random:
        """Random numbers of their own for each name, whatever was measured before."""
        return Random(f"{self.seed} {name}")

    def plugins(self, node: Node) -> tuple[PluginSpec, ...]:
        """Our daemon on each engine, and the others that can see the node."""
        own = tuple(own_plugin(engine, node.backend) for engine in self.engines)
        if node.backend == "sim":
            self.note(
                "No C compiler: our own plugin has the simulated GPUs in its own process "
                "(--backend sim)."
            )
        return (*own, *self.others)

    def note(self, text: str) -> None:
        """Add a note for the reader of the results, once."""
        if text not in self.notes:
            self.notes.append(text)
