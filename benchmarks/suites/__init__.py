"""The suites. Each is a module with `measure(context)`, which returns figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from benchmarks.plugins import PluginSpec, own_plugin
from benchmarks.servers import ENGINES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.calls import ClientName
    from benchmarks.plugins import Node
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
    """A run's settings; `folder` is an empty one with a short path, for sockets."""

    effort: Effort
    folder: Path
    engines: tuple[EngineName, ...] = ENGINES
    others: tuple[PluginSpec, ...] = ()
    client: ClientName = "raw"
    seed: int = 1
    quick: bool = False
    progress: Callable[[str, float], None] = lambda _what, _share: None
    notes: list[str] = field(default_factory=list)

    def chance(self, suite: str) -> Random:
        """Random numbers of a suite, which do not depend on the suites that run before it."""
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
        """Add a note for the reader of the results, once."""
        if text not in self.notes:
            self.notes.append(text)
