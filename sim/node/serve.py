"""What a process that owns a live node serves: its control socket, NVML, and the kernel's files."""

from __future__ import annotations

import logging
import shutil
import uuid as uuids
from collections import deque
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, TypeVar

from hal.nvml.kernelfiles import GPUS, MIG_MINORS, sysfs_bus_id
from sim.lineserver import LineServer
from sim.node.control import control_socket, serve_control
from sim.nvml.server import NvmlServer, nvml_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from hal import Gpu
    from sim.node.node import SimulatedNode
    from sim.node.realtime import RealTimeNode
    from sim.nvml.server import ProcessIds


log = logging.getLogger(__name__)

_LINKS = "bus/pci/devices"
_FOLDERS_KEPT = 64
"""Folders that are gone are deleted late: programs tell a new one by its inode's number, which a
file system gives away again."""


def kernel_folder(kubelet_dir: Path) -> Path:
    return kubelet_dir / "gpuplugin-sim-kernel"


class KernelFiles:
    """Follows a node; the caller holds it still."""

    def __init__(self, root: Path) -> None:
        self.sysfs = root / "sys"
        self.procfs = root / "proc"
        self._root = root
        self._numbers = 0
        self._devices: dict[str, tuple[str, int]] = {}
        """UUID and count of resets of the GPUs that have a folder, by bus id."""
        self._gone: deque[Path] = deque()
        self._texts: dict[Path, str] = {}
        shutil.rmtree(root, ignore_errors=True)
        # A node that is served anew has booted.
        self._write(self.procfs / "sys/kernel/random/boot_id", f"{uuids.uuid4()}\n")

    def follow(self, node: SimulatedNode) -> None:
        """Make the files those of the node as it is now; most often there is nothing to do."""
        try:
            self._follow(node)
        except OSError as error:
            log.warning("the files of the simulated kernel cannot be written: %s", error)

    def remove(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)

    def _follow(self, node: SimulatedNode) -> None:
        self._show(self.sysfs / "module/nvidia", shown=node.driver.loaded)
        plugged = {
            sysfs_bus_id(gpu.identity.pci_bus_id): gpu for gpu in node.present if gpu.plugged
        }
        for bus_id in self._devices.keys() - plugged.keys():
            self._show(self.sysfs / _LINKS / bus_id, shown=False)
            del self._devices[bus_id]
        for bus_id, gpu in plugged.items():
            state = (gpu.identity.uuid, gpu.resets)
            if self._devices.get(bus_id) != state:
                self._show(self.sysfs / _LINKS / bus_id, shown=False)
                self._show(self.sysfs / _LINKS / bus_id, shown=True, gpu=gpu.identity)
                self._devices[bus_id] = state
        for gpu in node.present:
            identity = gpu.identity
            folder = self.procfs / GPUS / sysfs_bus_id(identity.pci_bus_id)
            self._write(folder / "information", _information(identity))
        self._write(self.procfs / MIG_MINORS, _minors(gpu.identity for gpu in node.present))

    def _show(self, link: Path, *, shown: bool, gpu: Gpu | None = None) -> None:
        if not shown:
            if link.is_symlink():
                self._gone.append(link.readlink())
                link.unlink()
            while len(self._gone) > _FOLDERS_KEPT:
                shutil.rmtree(self._gone.popleft(), ignore_errors=True)
            return
        if link.is_symlink():
            return
        self._numbers += 1
        folder = (self.sysfs / "devices" / str(self._numbers)).absolute()
        folder.mkdir(parents=True)
        if gpu is not None:
            (folder / "numa_node").write_text(f"{-1 if gpu.numa_node is None else gpu.numa_node}\n")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder)

    def _write(self, path: Path, text: str) -> None:
        """In one step, if it is not there."""
        if self._texts.get(path) == text:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(text)
        fresh.replace(path)
        self._texts[path] = text


def _information(gpu: Gpu) -> str:
    return (
        f"Model: \t\t {gpu.product}\nGPU UUID: \t {gpu.uuid}\nBus Type: \t PCIe\n"
        f"Bus Location: \t {sysfs_bus_id(gpu.pci_bus_id)}\nDevice Minor: \t {gpu.minor}\n"
        "GPU Excluded:\t No\n"
    )


def _minors(gpus: Iterable[Gpu]) -> str:
    lines = ["config 1", "monitor 2"]
    for gpu in gpus:
        for mig in gpu.mig_devices:
            where = f"gpu{gpu.minor}/gi{mig.gpu_instance}"
            gi, ci = (node.rpartition("cap")[2] for node in mig.device_nodes[1:])
            lines += [f"{where}/access {gi}", f"{where}/ci{mig.compute_instance}/access {ci}"]
    return "\n".join(lines) + "\n"


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
