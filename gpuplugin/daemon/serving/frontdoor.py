"""The device-plugin API as the front door: a device plugin and its endpoint for each resource."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gpuplugin.daemon.serving.endpoint import Endpoint
from gpuplugin.daemon.tasks import supervise
from gpuplugin.kubelet.deviceplugin import DevicePlugins

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuplugin.core.node import NodeView
    from gpuplugin.daemon.serving.endpoint import ServingContext
    from gpuplugin.kubelet.deviceplugin import DevicePlugin

_EMPTY_LIST_S = 0.5
"""Time for an empty list to reach the kubelet before the resource's socket is removed."""


class DevicePluginDoor:
    """Serves the resources of the newest view; see `daemon.frontdoor.FrontDoor`."""

    def __init__(self, context: ServingContext) -> None:
        self._context = context
        self._metrics = context.metrics
        self._plugins = DevicePlugins(context.metrics.choices_of)
        self._changed = asyncio.Event()

    @property
    def plugins(self) -> Mapping[str, DevicePlugin]:
        return self._plugins.by_resource

    def publish(self, view: NodeView) -> None:
        applied = self._plugins.apply(view)
        for name in applied.lists:
            self._metrics.list_updates.labels(resource=name).inc()
            size_bytes = self.plugins[name].devices.size_bytes
            self._metrics.list_bytes.labels(resource=name).set(size_bytes)
        for name in applied.removed:
            self._metrics.forget_resource(name)
        if applied.added or applied.removed:
            self._changed.set()

    async def run(self) -> None:
        """Follow the node's resources until cancelled; sockets are removed when this returns."""
        running: dict[str, tuple[DevicePlugin, asyncio.Task[None]]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._changed.clear()
                wanted = dict(self.plugins)
                for name, (plugin, task) in list(running.items()):
                    if wanted.get(name) is not plugin:
                        await _stop_serving(plugin, task)
                        del running[name]
                        if name not in self.plugins:  # it may be back meanwhile
                            self._metrics.forget_resource(name)
                for name, plugin in wanted.items():
                    if name not in running:
                        running[name] = (plugin, tasks.create_task(self._serve(name, plugin)))
                await self._changed.wait()

    async def _serve(self, name: str, plugin: DevicePlugin) -> None:
        context = self._context
        endpoint = Endpoint(plugin, context)
        await supervise(f"endpoint:{name}", endpoint.run, context.status, context.metrics)


async def _stop_serving(plugin: DevicePlugin, task: asyncio.Task[None]) -> None:
    """Stop serving a resource: an empty list first, so that the kubelet forgets its capacity."""
    plugin.devices.publish(b"")
    await asyncio.sleep(_EMPTY_LIST_S)
    task.cancel()
    await asyncio.wait([task])
