"""The kernel's files of a simulated node: its PCI devices, its module and what that shows in /proc.

`sim.node.mounts` puts them into their real places.
"""

from __future__ import annotations

import logging
import shutil
import struct
import uuid as uuids
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from hal import PCI_3D
from hal.nvml.kernelfiles import GPUS, MIG_MINORS, sysfs_bus_id
from sim.gpu.instances import device_of
from sim.gpu.nvlinks import NVSWITCH_DEVICE_ID
from sim.gpu.profiles import capability_minor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from sim.gpu.gpu import SimulatedGpu
    from sim.node.node import SimulatedNode

log = logging.getLogger(__name__)

WORK = "work"
"""An empty folder, for what a mount namespace needs beside these files."""
_BOOT_ID = "sys/kernel/random/boot_id"
_DEVICES = "bus/pci/devices"
_DRIVER = "bus/pci/drivers/nvidia"
_DRIVER_FILES = "driver/nvidia"
_CAPABILITIES = f"{_DRIVER_FILES}/capabilities"
_FOLDERS_KEPT = 64
"""Folders that are gone are deleted late: programs tell a new one by its inode's number, which a
file system gives away again."""
_VENDOR = 0x10DE
_BRIDGE = 0x068000
"""The class of NVSwitches."""
_REVISION = 0xA1
_BAR0_BITS = 24
"""Registers take 16 MiB; the other BARs are not simulated."""


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
        self._capabilities: set[Path] = set()
        shutil.rmtree(root, ignore_errors=True)
        # A node that is served anew has booted.
        self._boot_id = f"{uuids.uuid4()}\n"
        self._write(self.procfs / _BOOT_ID, self._boot_id)
        for folder in (_DEVICES, _DRIVER, "module"):
            (self.sysfs / folder).mkdir(parents=True)
        (root / WORK).mkdir()

    def follow(self, node: SimulatedNode) -> None:
        """Make the files those of the node as it is now; most often there is nothing to do."""
        try:
            self._follow(node)
        except OSError as error:
            log.warning("the files of the simulated kernel cannot be written: %s", error)

    def remove(self) -> None:
        """Remove the files, if no other node has put its own there meanwhile."""
        with suppress(OSError):
            if (self.procfs / _BOOT_ID).read_text() == self._boot_id:
                shutil.rmtree(self._root, ignore_errors=True)

    def _follow(self, node: SimulatedNode) -> None:
        version = node.scenario.driver_version
        module = {"version": f"{version}\n", "initstate": "live\n", "refcnt": "1\n"}
        self._show(self.sysfs / "module/nvidia", module if node.driver.loaded else None)
        self._follow_devices(node)
        for gpu in node.present:
            folder = self.procfs / GPUS / sysfs_bus_id(gpu.identity.pci_bus_id)
            self._write(folder / "information", _information(gpu))
        self._write(self.procfs / MIG_MINORS, _minors(node.present))
        self._write(self.procfs / _DRIVER_FILES / "version", _version(version))
        self._write(self.procfs / _DRIVER_FILES / "params", _PARAMS)
        self._follow_capabilities(node.present)

    def _follow_devices(self, node: SimulatedNode) -> None:
        plugged = {
            sysfs_bus_id(gpu.identity.pci_bus_id): gpu for gpu in node.present if gpu.plugged
        }
        for bus_id in node.nvswitches:
            self._show(self.sysfs / _DEVICES / sysfs_bus_id(bus_id), _SWITCH_FILES)
        for bus_id in self._devices.keys() - plugged.keys():
            self._show(self.sysfs / _DEVICES / bus_id, None)
            del self._devices[bus_id]
        for bus_id, gpu in plugged.items():
            state = (gpu.identity.uuid, gpu.resets)
            if self._devices.get(bus_id) != state:
                self._show(self.sysfs / _DEVICES / bus_id, None)
                self._show(self.sysfs / _DEVICES / bus_id, _pci_files(gpu))
                self._devices[bus_id] = state

    def _follow_capabilities(self, gpus: Iterable[SimulatedGpu]) -> None:
        wanted = {self.procfs / _CAPABILITIES / name: minor for name, minor in _capabilities(gpus)}
        for path in self._capabilities - wanted.keys():
            path.unlink(missing_ok=True)
            self._texts.pop(path, None)
        for path, minor in wanted.items():
            self._write(
                path, f"DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n"
            )
        self._capabilities = set(wanted)

    def _show(self, link: Path, files: Mapping[str, str | bytes] | None) -> None:
        """A folder with these files behind the link; None: no folder."""
        if files is None:
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
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            (folder / name).write_bytes(data)
        if link.parent.name == "devices":
            (folder / "driver").symlink_to((self.sysfs / _DRIVER).absolute())
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


def _pci_files(gpu: SimulatedGpu) -> dict[str, str | bytes]:
    """The files of a PCI device that programs read."""
    identity, board = gpu.identity, gpu.profile.board
    device = (gpu.profile.pci_device_id or 0) >> 16
    subsystem = board.pci_subsystem_id or 0
    kind = PCI_3D if identity.pci_class is None else identity.pci_class
    return {
        "vendor": f"0x{_VENDOR:04x}\n",
        "device": f"0x{device:04x}\n",
        "subsystem_vendor": f"0x{subsystem & 0xFFFF:04x}\n",
        "subsystem_device": f"0x{subsystem >> 16:04x}\n",
        "class": f"0x{kind:06x}\n",
        "revision": f"0x{_REVISION:02x}\n",
        "config": _config(device, subsystem, kind),
        "resource": _resources(identity.index),
        "numa_node": f"{-1 if identity.numa_node is None else identity.numa_node}\n",
        "enable": "1\n",
        "uevent": _uevent(gpu, device, subsystem, kind),
    }


def _config(device: int, subsystem: int, kind: int) -> bytes:
    """The first 256 bytes of the configuration space, its BARs empty."""
    head = struct.pack(
        "<HHHHB3sBBBB", _VENDOR, device, 0x0406, 0x0010, _REVISION,
        kind.to_bytes(3, "little"), 0, 0, 0, 0,
    )  # fmt: skip
    return (head.ljust(0x2C, b"\0") + struct.pack("<I", subsystem)).ljust(256, b"\0")


_SWITCH_FILES: Mapping[str, str | bytes] = {
    "vendor": f"0x{_VENDOR:04x}\n",
    "device": f"0x{NVSWITCH_DEVICE_ID >> 16:04x}\n",
    "class": f"0x{_BRIDGE:06x}\n",
    "numa_node": "-1\n",
    "resource": "",
    "config": _config(NVSWITCH_DEVICE_ID >> 16, 0, _BRIDGE),
}


def _resources(index: int) -> str:
    """Start, end and flags of the address ranges: the registers', then none."""
    start = 0x40_0000_0000 + (index << 32)
    first = f"0x{start:016x} 0x{start + (1 << _BAR0_BITS) - 1:016x} 0x{0x40200:016x}"
    return "\n".join((first, *[" ".join([f"0x{0:016x}"] * 3)] * 12)) + "\n"


def _uevent(gpu: SimulatedGpu, device: int, subsystem: int, kind: int) -> str:
    return (
        f"DRIVER=nvidia\nPCI_CLASS={kind:X}\nPCI_ID={_VENDOR:04X}:{device:04X}\n"
        f"PCI_SUBSYS_ID={subsystem & 0xFFFF:04X}:{subsystem >> 16:04X}\n"
        f"PCI_SLOT_NAME={sysfs_bus_id(gpu.identity.pci_bus_id)}\n"
    )


_PARAMS = "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 1\nDeviceFileUID: 0\n"


def _version(version: str) -> str:
    return (
        f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build  "
        "(simulated)\nGCC version:  simulated\n"
    )


def _information(gpu: SimulatedGpu) -> str:
    identity = gpu.identity
    bios = gpu.profile.board.vbios or "??.??.??.??.??"
    return (
        f"Model: \t\t {identity.product}\nIRQ:   \t\t {64 + identity.index}\n"
        f"GPU UUID: \t {identity.uuid}\nVideo BIOS: \t {bios}\nBus Type: \t PCIe\n"
        "DMA Size: \t 47 bits\nDMA Mask: \t 0x7fffffffffff\n"
        f"Bus Location: \t {sysfs_bus_id(identity.pci_bus_id)}\n"
        f"Device Minor: \t {identity.minor}\nGPU Excluded:\t No\n"
    )


def _access(gpus: Iterable[SimulatedGpu]) -> Iterator[tuple[int, int, int | None, int]]:
    """GPU minor, GPU instance, compute instance or None, and the minor of the capability."""
    for gpu in gpus:
        identity = gpu.identity
        for instance in gpu.instances.values():
            minor = capability_minor(identity.index, instance.id)
            where = (identity.index if identity.minor is None else identity.minor, instance.id)
            yield *where, None, minor
            device = device_of(gpu, instance)
            if device is not None:
                yield *where, device.compute_instance, minor + 1


def _minors(gpus: Iterable[SimulatedGpu]) -> str:
    lines = ["config 1", "monitor 2"]
    for gpu, gi, ci, minor in _access(gpus):
        part = "" if ci is None else f"/ci{ci}"
        lines.append(f"gpu{gpu}/gi{gi}{part}/access {minor}")
    return "\n".join(lines) + "\n"


def _capabilities(gpus: Iterable[SimulatedGpu]) -> Iterator[tuple[str, int]]:
    """The capability files, and the minors of their device nodes."""
    yield "mig/config", 1
    yield "mig/monitor", 2
    for gpu, gi, ci, minor in _access(gpus):
        part = "" if ci is None else f"/ci{ci}"
        yield f"gpu{gpu}/mig/gi{gi}{part}/access", minor
