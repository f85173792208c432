"""The sockets of a DRA driver: one that the kubelet's watcher finds, one for the calls.

Every instance has names of its own, so that two may serve during an upgrade: the kubelet calls the
one that came last, and the driver's slices stay as long as there is one.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

from gpuplugin.core.pacing import Backoff
from gpuplugin.daemon.logs import log_fact
from gpuplugin.daemon.serving.sockets import (
    DRA_CALLS,
    dra_registrations,
    identity,
    listened_on,
    remove_socket,
    start_server,
    stop_server,
)
from gpuplugin.daemon.tasks import wait_period_or
from gpuplugin.kubelet.draplugin import HEALTH_VERSIONS, PLUGIN_TYPE, VERSIONS
from gpuplugin.kubelet.registration import plugin_info, watched_service
from gpuplugin.rpc.services import SocketError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gpuplugin.daemon.files import FileWatch
    from gpuplugin.daemon.serving.sockets import Identity, KubeletDirs
    from gpuplugin.daemon.status import StatusBoard
    from gpuplugin.kubelet.draplugin import DraPlugin
    from gpuplugin.rpc.services import Engine, Service

COMPONENT = "kubelet:dra"
MAX_PAUSE_S = 5.0
STOP_GRACE_S = 5.0
"""For calls that run: of an instance that is replaced none fails."""
_TOKEN_BYTES = 4

log = logging.getLogger(__name__)


class DraEndpoint:
    """Serves a driver until cancelled; sockets that vanish or are refused get other names."""

    def __init__(
        self,
        driver: str,
        plugin: DraPlugin,
        dirs: KubeletDirs,
        engine: Engine,
        status: StatusBoard,
        files: FileWatch,
        found: Callable[[], object] = lambda: None,
        wrap: Callable[[Service], Service] = lambda service: service,
    ) -> None:
        """`found` is called on the loop when a kubelet finds the driver; `wrap` measures calls."""
        self._driver = driver
        self._plugin = plugin
        self._dirs = dirs
        self._engine = engine
        self._status = status
        self._files = files
        self._found = found
        self._wrap = wrap
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Event()
        self._refusal = ""
        self._accepted = False
        status.set(COMPONENT, "waiting for the kubelet's plugin watcher", ok=False)

    async def run(self) -> None:
        backoff = Backoff(0.1, MAX_PAUSE_S)
        while True:
            token = os.urandom(_TOKEN_BYTES).hex()
            registry, folder = self._dirs.plugin_watcher, self._dirs.dra_driver(self._driver)
            calls = folder / f"dra-{token}.sock"
            found = registry / f"{self._driver}-{token}-reg.sock"
            try:
                for place in (registry, folder):
                    place.mkdir(mode=0o750, parents=True, exist_ok=True)
                remove_dead(registry, dra_registrations(self._driver))
                remove_dead(folder, DRA_CALLS)
                reason = await self._serve(calls, found)
                if self._accepted:
                    backoff.reset()
            except (OSError, SocketError) as error:
                reason = f"no socket: {error}"
            pause_s = backoff.next_s()
            self._status.set(COMPONENT, f"no kubelet: {reason}", ok=False)
            text = f"renewing the sockets of {self._driver} in {pause_s:g} s: {reason}"
            log_fact(log, logging.WARNING, "socket-renewal", text)
            await asyncio.sleep(pause_s)

    async def _serve(self, calls: Path, found: Path) -> str:
        """Serve both sockets until they have to be renewed; returns why."""
        info = plugin_info(PLUGIN_TYPE, self._driver, str(calls), (*VERSIONS, *HEALTH_VERSIONS))
        registration = watched_service(
            info, lambda: self._soon(self._found), self._registered_in_thread
        )
        self._refusal, self._accepted = "", False
        async with AsyncExitStack() as ends:
            # The kubelet may call as soon as it finds the other one.
            for path, services in (
                (calls, [*map(self._wrap, self._plugin.services())]),
                (found, [registration]),
            ):
                server = await start_server(self._engine, path, services)
                ends.push_async_callback(stop_server, server, path, STOP_GRACE_S)
                ends.callback(self._plugin.health.end_streams)  # before its server stops
            log_fact(log, logging.INFO, "serving", f"serving {self._driver} on {calls}")
            made = [(path, identity(path)) for path in (calls, found)]
            while True:
                look_s = self._files.follow([calls.parent, found.parent], self._turn)
                if reason := self._outdated(made):
                    return reason
                await wait_period_or(self._turn, look_s)

    def _outdated(self, made: list[tuple[Path, Identity | None]]) -> str:
        if self._refusal:
            return f"registration-refused: {self._refusal}"
        # None: removed before it was looked at.
        removed = any(known is None or identity(path) != known for path, known in made)
        return "socket-removed" if removed else ""

    def _registered_in_thread(self, accepted: bool, error: str) -> None:
        self._soon(self._registered, accepted, error)

    def _soon(self, change: Callable[..., object], *args: object) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(change, *args)

    def _registered(self, accepted: bool, error: str) -> None:
        if accepted:
            self._accepted = True
            self._status.set(COMPONENT, "the kubelet registered the driver", ok=True)
            log_fact(log, logging.INFO, "registered", f"the kubelet registered {self._driver}")
        else:
            self._refusal = error or "no reason given"
            self._turn.set()


def remove_dead(folder: Path, pattern: str) -> None:
    """Remove sockets on which nobody listens: left by an instance that was killed."""
    for path in folder.glob(pattern):
        if not listened_on(path):
            remove_socket(path)
