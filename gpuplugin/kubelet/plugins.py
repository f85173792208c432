"""The device plugins of a node, one per resource, as its newest view wants them."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpuplugin.kubelet.deviceplugin import DevicePlugin
from gpuplugin.kubelet.snapshot import ServingPlan, snapshot_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gpuplugin.core.node import NodeView
    from gpuplugin.kubelet.snapshot import ResourceSnapshot


@dataclass(frozen=True, slots=True)
class Applied:
    """What a view changed: resources with another list, plugins that came or went."""

    lists: tuple[str, ...]
    added: tuple[str, ...]
    removed: Mapping[str, DevicePlugin]


class DevicePlugins:
    """`by_resource` is swapped in one assignment; `choices_of` makes what counts preferences."""

    def __init__(
        self, choices_of: Callable[[str], Callable[[str], None]] = lambda _name: _ignore
    ) -> None:
        self.by_resource: Mapping[str, DevicePlugin] = MappingProxyType({})
        self._choices_of = choices_of
        self._snapshots: dict[str, ResourceSnapshot] = {}
        self._made_of: tuple[object, ...] = ()

    def apply(self, view: NodeView) -> Applied:
        """Answer from `view` from now on, and send lists where they differ."""
        made_of = (view.inventory, view.plan, view.links)
        if len(made_of) != len(self._made_of) or any(
            new is not old for new, old in zip(made_of, self._made_of, strict=True)
        ):
            serving = ServingPlan(view.plan.injection, view.plan.policy, view.links)
            self._snapshots = {
                resource.name: snapshot_of(resource, serving)
                for resource in view.inventory.resources
            }
            self._made_of = made_of
        before = self.by_resource
        self.by_resource = MappingProxyType(
            {
                name: before.get(name) or DevicePlugin(snapshot, self._choices_of(name))
                for name, snapshot in self._snapshots.items()
            }
        )
        return Applied(
            lists=tuple(
                name
                for name, plugin in self.by_resource.items()
                if plugin.update(self._snapshots[name], view.healthy)
            ),
            added=tuple(name for name in self.by_resource if name not in before),
            removed=MappingProxyType(
                {name: before[name] for name in before if name not in self.by_resource}
            ),
        )


def _ignore(_method: str) -> None:
    """Preferences are not counted."""
