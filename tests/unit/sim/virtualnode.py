"""A simulated node in virtual time behind `hal.Backend`, so that an hour is recorded in seconds."""

from __future__ import annotations

import io
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sim.node.node import SimulatedNode
from sim.node.realtime import RealTimeNode, SimBackend
from sim.node.scenario import USAGE_MARK, parse_scenario
from sim.study.observe import observe
from sim.study.recording import as_yaml
from sim.study.usage import Labels, UsageWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from gpuplugin.core.usage import PodName
    from hal import Event


class VirtualNode(RealTimeNode):
    """Its time goes on while events are waited for, and not else."""

    def __init__(self, node: SimulatedNode) -> None:
        self.model = node
        super().__init__(node)

    def start(self) -> None:
        """Nothing drives it."""

    @contextmanager
    def update(self) -> Iterator[SimulatedNode]:
        yield self.model

    @contextmanager
    def call(self, uuid: str | None = None) -> Iterator[SimulatedNode]:
        yield self.model

    def wait_events(self, timeout_s: float) -> Sequence[Event]:
        self.model.advance(self.model.now_s + timeout_s)
        return self.model.take_events()


def record(
    scenario: str,
    file: Path,
    for_s: float,
    interval_s: float = 1.0,
    *,
    scrub: bool = False,
    began_s: float = 1_800_000_000.0,
    pods: Callable[[frozenset[int]], Mapping[int, PodName | None]] = lambda _pids: {},
) -> Path:
    """What `gpuplugin record` writes of a scenario."""
    node = VirtualNode(SimulatedNode(parse_scenario(scenario, "recorded")))
    backend = SimBackend(node)
    backend.open()
    labels, usage = Labels(scrub=scrub), io.StringIO()
    writer = UsageWriter(usage, interval_s, for_s, began_s, labels, pods)
    found = observe(backend, for_s, interval_s, lambda: node.model.now_s, writer.looked)
    writer.flush()
    file.write_text(f"{as_yaml(found, 'recorded', labels)}{USAGE_MARK}\n{usage.getvalue()}")
    return file
