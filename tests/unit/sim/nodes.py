"""Simulated nodes for the tests of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from sim.gpu.faults import FAULT, NodeFault, TimedFault
from sim.node.node import SimulatedNode
from sim.node.realtime import RealTimeNode, SimBackend
from sim.node.scenario import GpuGroup, Scenario, Tenant, parse_scenario

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hal import Event
    from sim.gpu.gpu import SimulatedGpu

TENANTS = [
    Tenant(name="one", gpu=0, utilization=0.6, memory_gib=3),
    Tenant(name="two", gpu=0, utilization=0.9, memory_gib=2),
    Tenant(name="three", gpu=1, utilization=0.25, memory_gib=1),
]


def a_scenario(
    *faults: TimedFault, seed: int = 1, model: str = "t4", tenants: bool = True
) -> Scenario:
    return Scenario(
        seed=seed,
        gpus=[GpuGroup(model=model, count=3)],
        tenants=TENANTS if tenants else [],
        faults=list(faults),
    )


def a_node(*faults: TimedFault) -> tuple[SimulatedNode, list[SimulatedGpu]]:
    node = SimulatedNode(a_scenario(*faults))
    return node, list(node.gpus.values())


def names(gpu: SimulatedGpu) -> list[str]:
    return [process.name for process in gpu.processes()]


class Story:
    """A node to which one thing after another happens, ten seconds apart, seen through the HAL.

    The faults are a scenario's timed ones, or come by hand at the same times. Time goes on only
    by `next` and `at`: the node is never started.
    """

    def __init__(
        self,
        *whats: str,
        by_hand: bool = True,
        gpu: str = "0",
        gpus: str = "[{model: h100-sxm5-80gb, count: 3}]",
        rest: str = "tenants: [{name: one, gpu: 0}, {name: two, gpu: 0}, {name: three, gpu: 1}]",
    ) -> None:
        self._by_hand = list(whats) if by_hand else []
        self._gpu = gpu
        timed = [
            f"  - {{at_s: {10 * number}, what: {what}"
            + ("}" if _is_of_node(what) else f", gpu: {gpu}}}")
            for number, what in enumerate(whats, 1)
            if not by_hand
        ]
        faults = "\n".join(["faults:", *timed]) if timed else ""
        text = f"gpus: {gpus}\n{rest}\n{faults}"
        self.model = SimulatedNode(parse_scenario(text, "a story"))
        self.node = RealTimeNode(self.model)
        self.hal = SimBackend(self.node)
        self.uuids = tuple(self.model.gpus)

    def at(self, now_s: float) -> None:
        """Go on to this moment."""
        with self.node.update() as model:
            model.advance(now_s)

    def next(self) -> Sequence[Event]:
        """Go on to the next fault; returns what was reported by then."""
        self.at(self.model.now_s // 10 * 10 + 10)
        if self._by_hand:
            self.let(self._by_hand.pop(0), self._gpu)
        return self.model.take_events()

    def let(self, what: str, gpu: str = "0") -> None:
        """Let something, spelt as in a scenario, happen now."""
        fault = FAULT.validate_python(yaml.safe_load(what))
        with self.node.update() as model:
            if isinstance(fault, NodeFault):
                model.inject_node(fault)
            else:
                model.inject(model.find(gpu), fault)


def _is_of_node(what: str) -> bool:
    return isinstance(FAULT.validate_python(yaml.safe_load(what)), NodeFault)
