"""The engines by name. Each is loaded when it is chosen: grpcio alone takes 10 MiB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gpuplugin.rpc.services import Engine


def make_engine(name: Literal["fast", "grpcio"]) -> Engine:
    """The engine of that name."""
    if name == "grpcio":
        from gpuplugin.rpc.grpcio_engine import GrpcioEngine

        return GrpcioEngine()
    from gpuplugin.rpc.fast import FastEngine

    return FastEngine()
