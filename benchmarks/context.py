"""What every suite is given: how much to measure, of what, and whom to tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from benchmarks.engines import ENGINES
from benchmarks.plugins import PluginSpec, own_plugin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.calls import ClientName
    from benchmarks.node import Node


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


@dataclass(frozen=True, slots=True)
class Context:
    """A run's settings; `folder` is an empty one with a short path, for sockets."""

    effort: Effort
    folder: Path
    engines: tuple[str, ...] = tuple(ENGINES)
    others: tuple[PluginSpec, ...] = ()
    client: ClientName = "raw"
    seed: int = 1
    quick: bool = False
    tell: Callable[[str, float], None] = lambda _what, _share: None
    notes: list[str] = field(default_factory=list)

    def chance(self, suite: str) -> Random:
        """Random numbers of a suite: the same whichever suites run before."""
        return Random(f"{self.seed} {suite}")

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
        """Something that a reader has to know; once is enough."""
        if text not in self.notes:
            self.notes.append(text)
