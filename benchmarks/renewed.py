"""The floor of a first call: a server that does nothing but be made anew, as the plugin is.

What a process did a moment ago decides which of its code and data are still in the processor's
caches, the engine's included. The plugin is made anew before each first call, so its floor is too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.devices import plugin_for
from benchmarks.servers import RENEW, daemon_like, run_engine
from gpuplugin.rpc.services import Service

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

    from benchmarks.servers import Handlers


@dataclass(frozen=True, slots=True)
class RenewedEmptyHandler:
    """Every method answers nothing at once, but for `RENEW`, which does what it does for `like`."""

    like: Handlers

    def serve(self, path: Path, stop: Connection) -> None:
        """Serve until `stop` has news."""
        like = self.like
        service = daemon_like(plugin_for(like.gpus, like.replicas, like.topology))
        unary = {name: lambda _request: b"" for name in service.unary}
        unary[RENEW] = service.unary[RENEW]
        run_engine(like.engine, path, Service(service.name, unary, service.streams), stop)
