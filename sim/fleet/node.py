"""One node of a fleet in virtual time: GPUs, the plugin's decisions and a kubelet's. No I/O.

It is what `sim.virtual` runs from beginning to end, advanced to the present by whoever keeps it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.core.node import ConfigurationMisfit
from sim.node.node import SimulatedNode
from sim.virtual.doors import PluginDoor
from sim.virtual.kubelet import VirtualKubelet
from sim.virtual.plugin import VirtualPlugin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuplugin.config.settings import Settings
    from gpuplugin.kubelet.deviceplugin import DevicePlugin
    from sim.kubelet.devices import Amount
    from sim.node.scenario import Scenario

_START_S = 0.001
"""By then the plugin has opened the driver, and the kubelet has its first lists."""


class FleetNode:
    """A node of this name; `number` is its place in the fleet. `dirty`: its status has changed.

    Raises:
        ConfigurationMisfit: the configuration does not suit the scenario's GPUs.
    """

    def __init__(self, name: str, number: int, scenario: Scenario, settings: Settings) -> None:
        self.name = name
        self.number = number
        self.dirty = False
        self.model = SimulatedNode(scenario, name=name)
        self.kubelet = VirtualKubelet(number)
        self.plugin = VirtualPlugin(self.model, settings, PluginDoor(self._listed), _unlogged)
        self.advance(_START_S)

    @property
    def next_s(self) -> float:
        """When something happens next; infinity for never."""
        return self.model.next_s

    def advance(self, now_s: float) -> None:
        """Bring it to the present, in seconds since the fleet began."""
        self.model.advance(now_s)

    def amounts(self) -> Mapping[str, Amount]:
        return self.kubelet.amounts(self.model.now_s)

    def _listed(self, resource: str, plugin: DevicePlugin) -> None:
        self.kubelet.listed(resource, plugin)
        self.dirty = True


def _unlogged(_kind: str, _facts: dict[str, object]) -> None:
    """A fleet keeps no event log: that of hundreds of nodes is read by nobody."""


__all__ = ["ConfigurationMisfit", "FleetNode"]
