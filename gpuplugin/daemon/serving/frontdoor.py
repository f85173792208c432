"""The device-plugin API as the front door: a device plugin and its endpoint for each resource."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from gpuplugin.daemon.http.pageview import allocate_calls
from gpuplugin.daemon.logs import log_fact
from gpuplugin.daemon.serving.endpoint import Endpoint
from gpuplugin.daemon.serving.sockets import dra_registrations, listened_on
from gpuplugin.daemon.tasks import supervise, wait_period_or
from gpuplugin.kubelet.deviceplugin import DevicePlugins

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gpuplugin.core.nodeview import NodeView
    from gpuplugin.core.usage import ClaimUse, Holding
    from gpuplugin.daemon.http.pageview import CallView
    from gpuplugin.daemon.serving.endpoint import ServingContext
    from gpuplugin.kubelet.deviceplugin import DevicePlugin

COMPONENT: Final = "allocation"
LOOK_S = 2.0
"""How often to look whether the DRA driver is gone: one that is killed changes no folder."""
_EMPTY_LIST_S = 0.5
"""Time for an empty list to reach the kubelet before the resource's socket is removed."""


log = logging.getLogger(__name__)


class DevicePluginDoor:
    """Serves the resources of the newest view; see `daemon.frontdoor.FrontDoor`."""

    def __init__(self, context: ServingContext, dra_driver: str) -> None:
        """`dra_driver` is this project's driver, which must not serve the node as well."""
        self._context = context
        self._dra_driver = dra_driver
        self._metrics = context.metrics
        self._plugins = DevicePlugins(context.metrics.choices_of)
        self._changed = asyncio.Event()

    @property
    def plugins(self) -> Mapping[str, DevicePlugin]:
        return self._plugins.by_resource

    def calls(self) -> Sequence[CallView]:
        return allocate_calls(self.plugins)

    def holdings(self, uses: Iterable[ClaimUse]) -> Iterable[Holding]:
        return ()

    def held(self) -> None:
        """The kubelet's checkpoint knows better."""

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
        """Follow the node's resources until cancelled; sockets are removed when this returns.

        Not as long as the node is served by DRA: pods of both would share GPUs unseen.
        """
        await self._wait_for_dra()
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

    async def _wait_for_dra(self) -> None:
        status, registry = self._context.status, self._context.dirs.plugin_watcher
        turn = asyncio.Event()
        while True:
            self._context.files.follow([registry], turn)
            if not any(map(listened_on, registry.glob(dra_registrations(self._dra_driver)))):
                break
            text = (
                f"the DRA driver {self._dra_driver} serves this node: waiting until it is removed; "
                "to keep it, run this plugin with --allocation dra"
            )
            if status.set(COMPONENT, text, ok=False):
                log_fact(log, logging.ERROR, "served-by-dra", text)
            await wait_period_or(turn, LOOK_S)
        status.remove(COMPONENT)

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
