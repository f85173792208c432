"""Facts of GPUs from the kernel's /proc and /sys, and spellings of PCI addresses."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from hal.types import Gpu

GPUS: Final = "driver/nvidia/gpus"
MIG_MINORS: Final = "driver/nvidia-caps/mig-minors"
MIG_CAPABILITIES: Final = "driver/nvidia/capabilities"
_BUS_ID: Final = re.compile(
    r"(?P<domain>[0-9a-f]{4,8}):(?P<bus>[0-9a-f]{2}):(?P<device>[0-9a-f]{2})\.(?P<function>[0-7])",
    re.IGNORECASE,
)
_MIG_MINOR: Final = re.compile(r"gpu(\d+)/gi(\d+)(?:/ci(\d+))?/access (\d+)")
_FACT: Final = re.compile(r"(?P<key>[A-Za-z ]+):\s+(?P<value>.*\S)")
_UUID: Final = re.compile(r"GPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def canonical_bus_id(text: str) -> str:
    """`text` in the form `00000000:07:00.0`; left as it is where it is no PCI address."""
    match = _BUS_ID.fullmatch(text.strip("\0 "))
    if match is None:
        return text
    domain = int(match["domain"], 16)
    return f"{domain:08X}:{match['bus']}:{match['device']}.{match['function']}".upper()


def is_bus_id(text: str) -> bool:
    return _BUS_ID.fullmatch(text) is not None


def sysfs_bus_id(bus_id: str) -> str:
    """The kernel's spelling of a canonical bus id, `0000:07:00.0`."""
    domain, rest = bus_id.lower().split(":", 1)
    return f"{int(domain, 16):04x}:{rest}"


def numa_node(sysfs_root: Path, bus_id: str, warn: Callable[[str], None]) -> int | None:
    """The NUMA node of a PCI device; None where the platform names none, or no sensible one."""
    if not is_bus_id(bus_id):
        return None
    path = sysfs_root / "bus" / "pci" / "devices" / sysfs_bus_id(bus_id) / "numa_node"
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
    try:
        node = int(text)
    except ValueError:
        warn(f"{path} holds {text[:40]!r}, which is no NUMA node; it is ignored")
        return None
    return node if node >= 0 else None


def pci_class(sysfs_root: Path, bus_id: str) -> int | None:
    """The class of a PCI device, for example 0x030200; None where it is not shown."""
    if not is_bus_id(bus_id):
        return None
    try:
        text = (sysfs_root / "bus/pci/devices" / sysfs_bus_id(bus_id) / "class").read_text()
        return int(text, 16)
    except (OSError, ValueError):
        return None


def read_mig_minors(procfs_root: Path) -> Mapping[tuple[int, int, int | None], int]:
    """Capability minors by (GPU minor, GPU instance, compute instance or None).

    Lines read `gpu0/gi1/access 12` and `gpu0/gi1/ci0/access 13`; others (`config`, `monitor`) are
    for administrators. Empty where the driver keeps no such list.
    """
    try:
        text = (procfs_root / MIG_MINORS).read_text()
    except OSError:
        return {}
    minors: dict[tuple[int, int, int | None], int] = {}
    for line in text.splitlines():
        if found := _MIG_MINOR.fullmatch(line.strip()):
            gpu, gi, ci, minor = found.groups()
            minors[int(gpu), int(gi), None if ci is None else int(ci)] = int(minor)
    return minors


def mig_instances(procfs_root: Path, gpu_minors: Iterable[int | None]) -> tuple[str, ...]:
    """The GPU instances that there are now, and compute instances in them; empty if not shown."""
    found: list[str] = []
    for minor in gpu_minors:
        folder = f"{procfs_root}/{MIG_CAPABILITIES}/gpu{minor}/mig"
        for instance in _names(folder):
            found.append(f"{minor}/{instance}")
            found += [f"{minor}/{instance}/{one}" for one in _names(f"{folder}/{instance}")]
    return tuple(found)


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - at each look, and paths are slow
    except OSError:
        return []


def mig_device_nodes(
    gpu_minor: int | None,
    gpu_instance: int,
    compute_instance: int,
    minors: Mapping[tuple[int, int, int | None], int],
) -> tuple[str, ...]:
    """What a process needs to use the MIG device: the GPU's node and those of both instances."""
    if gpu_minor is None:
        return ()
    keys = ((gpu_minor, gpu_instance, None), (gpu_minor, gpu_instance, compute_instance))
    capabilities = (minors[key] for key in keys if key in minors)
    return (
        f"/dev/nvidia{gpu_minor}",
        *(f"/dev/nvidia-caps/nvidia-cap{minor}" for minor in capabilities),
    )


@dataclass(frozen=True, slots=True)
class ProcGpu:
    """A GPU that the module drives; `pci_bus_id` is in the kernel's spelling."""

    uuid: str
    product: str
    pci_bus_id: str
    minor: int | None


def read_proc_gpus(procfs_root: Path) -> tuple[ProcGpu | None, ...]:
    """The GPUs in the order of their addresses, which is NVML's; None for one without a UUID.

    A GPU that was never initialised shows question marks for its UUID. One that the module is
    configured to exclude (`GPU Excluded: Yes`) is left out here too.
    """
    try:
        folders = sorted((procfs_root / GPUS).iterdir())
    except OSError:
        return ()
    found: list[ProcGpu | None] = []
    for folder in folders:
        facts = _facts(folder / "information")
        if facts.get("GPU Excluded") == "Yes":
            continue
        uuid, minor = facts.get("GPU UUID", ""), facts.get("Device Minor", "")
        if _UUID.fullmatch(uuid) is None:
            found.append(None)
            continue
        number = int(minor) if minor.isdecimal() else None
        found.append(ProcGpu(uuid, facts.get("Model", ""), folder.name, number))
    return tuple(found)


def _facts(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    matches = (_FACT.fullmatch(line.strip()) for line in text.splitlines())
    return {match["key"].strip(): match["value"] for match in matches if match}


class KernelFolders:
    """The kernel's facts that enumeration needs, from /sys and /proc under these roots."""

    def __init__(self, sysfs_root: Path, procfs_root: Path) -> None:
        self._sysfs_root = sysfs_root
        self._procfs_root = procfs_root

    def numa_node(self, bus_id: str, warn: Callable[[str], None]) -> int | None:
        return numa_node(self._sysfs_root, bus_id, warn)

    def pci_class(self, bus_id: str) -> int | None:
        return pci_class(self._sysfs_root, bus_id)

    def mig_minors(self) -> Mapping[tuple[int, int, int | None], int]:
        return read_mig_minors(self._procfs_root)

    def gpus(self) -> tuple[ProcGpu | None, ...]:
        return read_proc_gpus(self._procfs_root)


def read_epoch(gpu: Gpu, driver_version: str, sysfs_root: Path, procfs_root: Path) -> str:
    """Text that changes with the node's boot, the driver's load, and the PCI device's removal.

    A reset that does none of these leaves no trace here; the recovery action shows it.
    """
    try:
        boot = (procfs_root / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        boot = "-"
    module = _sysfs_birth(sysfs_root / "module/nvidia")
    device = "-"
    if is_bus_id(gpu.pci_bus_id):
        device = _sysfs_birth(sysfs_root / "bus/pci/devices" / sysfs_bus_id(gpu.pci_bus_id))
    return f"{boot}/{driver_version}/{module}/{device}"


def _sysfs_birth(path: Path) -> str:
    # Only the inode's number: the kernel makes a new one for a new folder, whereas the times of
    # a sysfs folder also change when its inode was evicted from memory and is read again.
    try:
        return str(path.stat().st_ino)
    except OSError:
        return "-"
