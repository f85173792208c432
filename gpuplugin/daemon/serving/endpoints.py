"""One endpoint per resource: starts and stops them as the node's resources change."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gpuplugin.daemon.serving.endpoint import Endpoint
from gpuplugin.daemon.tasks import supervise

if TYPE_CHECKING:
    from gpuplugin.daemon.node import Node
    from gpuplugin.daemon.serving.endpoint import ServingContext
    from gpuplugin.kubelet.deviceplugin import DevicePlugin


_EMPTY_LIST_S = 0.5
"""Time for an empty list to reach the kubelet before the resource's socket is removed."""


class Endpoints:
    """The task that keeps one endpoint running per resource."""

    def __init__(self, node: Node, context: ServingContext) -> None:
        self._node = node
        self._context = context

    async def run(self) -> None:
        """Follow the node's resources until cancelled; sockets are removed when this returns."""
        running: dict[str, tuple[DevicePlugin, asyncio.Task[None]]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._node.resources_changed.clear()
                wanted = dict(self._node.plugins)
                for name, (plugin, task) in list(running.items()):
                    if wanted.get(name) is not plugin:
                        await _stop_serving(plugin, task)
                        del running[name]
                        if name not in self._node.plugins:  # it may be back meanwhile
                            self._context.metrics.forget_resource(name)
                for name, plugin in wanted.items():
                    if name not in running:
                        running[name] = (plugin, tasks.create_task(self._serve(name, plugin)))
                await self._node.resources_changed.wait()

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
