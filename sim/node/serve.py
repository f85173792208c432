"""What a process that owns a live node serves: its control socket, NVML, and the kernel's files."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, TypeVar

from sim.lineserver import LineServer
from sim.node.control import control_socket, serve_control
from sim.node.kernel import KernelFiles, kernel_folder
from sim.nvml.server import NvmlServer, nvml_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sim.node.realtime import RealTimeNode
    from sim.nvml.pids import ProcessIds


_Server = TypeVar("_Server", LineServer, NvmlServer)


class CannotServe(Exception):
    """A socket cannot be made; the text says which and why."""


@contextmanager
def served(node: RealTimeNode, kubelet_dir: Path, pids: ProcessIds | None = None) -> Iterator[None]:
    """Serve both sockets and the files of a kubelet's folder; raises `CannotServe`."""
    with (
        kernel_files(node, kernel_folder(kubelet_dir)),
        closing(_made(lambda path: serve_control(node, path), control_socket(kubelet_dir))),
        closing(_made(lambda path: NvmlServer(node, path, pids), nvml_socket(kubelet_dir))),
    ):
        yield


@contextmanager
def kernel_files(node: RealTimeNode, root: Path) -> Iterator[KernelFiles]:
    """The kernel's files, written before a change is seen otherwise; raises `CannotServe`."""
    try:
        files = KernelFiles(root)
    except OSError as error:
        raise CannotServe(f"the files in {root} cannot be written: {error}") from error
    with node.read() as model:
        files.follow(model)
        before = model.on_change

        def changed() -> None:
            files.follow(model)
            before()

        model.on_change = changed
    try:
        yield files
    finally:
        with node.read() as model:
            model.on_change = before
        files.remove()


def _made(make: Callable[[Path], _Server], path: Path) -> _Server:
    try:
        return make(path)
    except OSError as error:
        raise CannotServe(f"the socket {path} cannot be made: {error}") from error
