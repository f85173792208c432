"""The engines by name. Each is loaded when it is chosen: grpcio alone takes 10 MiB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gpuplugin.kubelet.rpc import Engine


def make_engine(name: Literal["fast", "grpcio"]) -> Engine:
    """The engine of that name."""
    if name == "grpcio":
        from gpuplugin.kubelet.engine_grpcio import GrpcioEngine

        return GrpcioEngine()
    from gpuplugin.kubelet.engine_fast import FastEngine

    return FastEngine()
