"""Connections to plugins, found by resource name alone, as the kubelet (1.36) does it.

A second plugin of a resource takes the place of the first, whose stream goes on until it ends by
itself; when it does, whatever is connected for the resource by then is disconnected.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from sim.kubelet.admission import CallFailed
from sim.kubelet.pluginclient import PluginClient

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sim.kubelet.devices import Listed
    from sim.kubelet.view import CallRecord


class Connections:
    """Open connections; `on_list` and `on_end` are called from the streams' threads."""

    def __init__(
        self,
        record: Callable[[CallRecord], None],
        on_list: Callable[[str, tuple[Listed, ...], int], None],
        on_end: Callable[[str, str], None],
    ) -> None:
        self._record = record
        self._on_list = on_list
        self._on_end = on_end
        self._lock = threading.Lock()
        self._current: dict[str, PluginClient] = {}
        self._dialled: set[PluginClient] = set()
        self._streams: list[tuple[PluginClient, threading.Thread]] = []

    def dial(self, resource: str, socket: Path) -> PluginClient:
        """A connection that is not in charge of its resource yet.

        Raises:
            CallFailed: the plugin does not answer.
        """
        client = PluginClient(resource, socket, self._record)
        with self._lock:
            self._dialled.add(client)
        try:
            client.dial()
        except CallFailed:
            self.give_up(client)
            raise
        return client

    def give_up(self, client: PluginClient) -> None:
        """Close a connection that will not be put in charge."""
        with self._lock:
            self._dialled.discard(client)
        client.close()

    def put_in_charge(self, client: PluginClient) -> None:
        """Send calls for its resource to this client, and follow its list."""
        resource = client.resource
        with self._lock:
            self._dialled.discard(client)
            self._current[resource] = client
            self._streams = [(one, thread) for one, thread in self._streams if thread.is_alive()]
            thread = client.watch(
                lambda devices, size_bytes: self._on_list(resource, devices, size_bytes),
                lambda reason: self._on_end(resource, reason),
            )
            self._streams.append((client, thread))

    def current(self, resource: str) -> PluginClient | None:
        """The client in charge of a resource."""
        with self._lock:
            return self._current.get(resource)

    def drop(self, resource: str) -> bool:
        """Disconnect whatever is in charge of a resource; False if nothing is."""
        with self._lock:
            client = self._current.pop(resource, None)
        if client is None:
            return False
        client.close()
        return True

    def close_all(self) -> None:
        """Disconnect everything, half-made connections too, and wait for streams to end."""
        with self._lock:
            self._current.clear()
            streams, self._streams = self._streams, []
            clients = {*self._dialled, *(client for client, _ in streams)}
            self._dialled.clear()
        for client in clients:
            client.close()
        for _, thread in streams:
            thread.join()
