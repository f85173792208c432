"""The RPC engines that are measured: one line each."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gpuplugin.rpc.services import Engine


class _MakesEngine(Protocol):
    def __call__(self) -> Engine: ...


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """Where an engine's class is, and the flags that make the daemon use it."""

    module: str
    name: str
    daemon_flags: tuple[str, ...] = ()

    def make(self) -> Engine:
        """A new engine; its module is loaded by this."""
        kind: _MakesEngine = getattr(import_module(self.module), self.name)
        return kind()


ENGINES = {
    "grpcio": EngineChoice(
        "gpuplugin.rpc.grpcio_engine", "GrpcioEngine", ("--rpc-engine", "grpcio")
    ),
    "fast": EngineChoice("gpuplugin.rpc.fast", "FastEngine"),
}
"""The library first, which the other is held against; the daemon's own has no flags."""
