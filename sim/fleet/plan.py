"""What a fleet is: its nodes, and how they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuplugin.config.settings import Settings
    from sim.fleet.objects import Machine
    from sim.node.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Pool:
    """Nodes of one scenario; `settings` are the plugin's on them."""

    scenario: Scenario
    settings: Settings
    count: int


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """What a fleet is; a lease lasts for `lease_s` and is renewed four times within it.

    With `keep` nodes stay at the API server when the fleet ends; with `reports` the health of their
    GPUs is told by Events and the condition GPUHealthy.
    """

    prefix: str
    pools: Sequence[Pool]
    machine: Machine
    lease_s: int = 40
    keep: bool = False
    reports: bool = False

    @property
    def count(self) -> int:
        return sum(pool.count for pool in self.pools)
