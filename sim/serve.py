"""What a process that owns a live node offers to others: faults by hand, and NVML."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, TypeVar

from sim.control import control_socket, serve_control
from sim.lineserver import LineServer
from sim.nvml.server import NvmlServer, nvml_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sim.nvml.standins import ProcessIds
    from sim.realtime import RealTimeNode

_Server = TypeVar("_Server", LineServer, NvmlServer)


class CannotServe(Exception):
    """A socket cannot be made; the text says which and why."""


@contextmanager
def served(node: RealTimeNode, kubelet_dir: Path, pids: ProcessIds | None = None) -> Iterator[None]:
    """Serve both sockets in the folder of the kubelet that the node belongs to.

    `pids` are the process ids that NVML tells; None for those of the simulation.

    Raises:
        CannotServe: a socket cannot be made.
    """
    with (
        closing(_made(lambda path: serve_control(node, path), control_socket(kubelet_dir))),
        closing(_made(lambda path: NvmlServer(node, path, pids), nvml_socket(kubelet_dir))),
    ):
        yield


def _made(make: Callable[[Path], _Server], path: Path) -> _Server:
    try:
        return make(path)
    except OSError as error:
        raise CannotServe(f"the socket {path} cannot be made: {error}") from error
