"""Looks at the driver's files: bus, modules, libraries, device nodes, MPS programs."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpuplugin.doctor.facts import DriverFacts, Library, PciGpu
from hal.nvml.library import LIBRARY, LIBRARY_DIRS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gpuplugin.doctor.facts import FileFact
    from gpuplugin.doctor.look.hostroot import HostRoot

_NVIDIA = "0x10de"
_GPU_CLASSES = ("0300", "0302")
_MODULES = frozenset({"nvidia", "nvidia_uvm", "nvidia_modeset", "nvidia_drm", "nouveau"})
_MPS_PROGRAMS = ("nvidia-cuda-mps-control", "nvidia-cuda-mps-server")
_VERSION = re.compile(r"\b(\d{3}\.\d+(?:\.\d+)?)\b")
_VERSIONED = re.compile(r"libnvidia-ml\.so\.(\d+\.\d+(?:\.\d+)?)")
_ELSEWHERE = (
    "/run/nvidia/driver",
    "/home/kubernetes/bin/nvidia",
    "/usr/local/nvidia",
    "/opt/nvidia",
    "/opt/nvidia-driver",
    "/run/opengl-driver",
    "/run/current-system/sw",
    "/usr/lib/wsl",
)
"""Other places of drivers: the GPU operator's, GKE's, those of NixOS and WSL."""
_NAME_BYTES = 15
"""The kernel keeps no more of a program's name."""


def look_at_driver(host: HostRoot, root: str) -> DriverFacts:
    """The driver that the configuration says is at `root`."""
    below = root.rstrip("/")
    own = tuple(_libraries(host, below, LIBRARY_DIRS))
    elsewhere = (
        library
        for place in _ELSEWHERE
        if place != below
        for library in _libraries(host, place, ("lib", *LIBRARY_DIRS))
    )
    known = {library.path for library in own}
    return DriverFacts(
        root=root,
        libraries=own,
        elsewhere=tuple(library for library in elsewhere if library.path not in known),
        modules=_modules(host),
        module_version=_module_version(host),
        pci=_pci(host),
        nodes=_nodes(host),
        char_links=bool(host.names("/dev/char", "195:*")),
        wsl=host.exists("/dev/dxg"),
        mps_processes=tuple(_running(host)),
    )


def _libraries(host: HostRoot, root: str, folders: tuple[str, ...]) -> Iterator[Library]:
    for folder in folders:
        path = f"{root}/{folder}/{LIBRARY}"
        here = host.at(path)
        if host.exists(path):
            version = _VERSIONED.fullmatch(here.resolve().name if host.is_own else here.name)
            problem = "it is empty" if not _size(host, path) else ""
            yield Library(path, version[1] if version else "", problem)
        elif target := host.link(path):
            yield Library(path, problem=f"it is a link to {target}, which is missing")


def _size(host: HostRoot, path: str) -> int:
    try:
        return host.at(path).stat().st_size
    except OSError:
        return 0


def _modules(host: HostRoot) -> frozenset[str] | None:
    text = host.text("/proc/modules")
    if text is None:
        return None
    return frozenset(line.split(" ", 1)[0] for line in text.splitlines()) & _MODULES


def _module_version(host: HostRoot) -> str:
    """From a line such as `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.105.08  ...`."""
    text = host.text("/proc/driver/nvidia/version") or ""
    lines = [line for line in text.splitlines() if line.startswith("NVRM version")]
    match = _VERSION.search(lines[0]) if lines else None
    return match[1] if match else ""


def _pci(host: HostRoot) -> tuple[PciGpu, ...] | None:
    folder = "/sys/bus/pci/devices"
    if not host.exists(folder):
        return None
    gpus = []
    for device in host.names(folder):
        if (host.text(f"{device}/vendor") or "").strip() != _NVIDIA:
            continue
        # 0x030200: class, subclass, programming interface.
        pci_class = (host.text(f"{device}/class") or "").strip().removeprefix("0x")[:4]
        if pci_class in _GPU_CLASSES:
            address = device.rpartition("/")[2]
            gpus.append(PciGpu(address, pci_class, host.link(f"{device}/driver")))
    return tuple(gpus)


def _nodes(host: HostRoot) -> Mapping[str, FileFact]:
    paths = (
        *host.names("/dev", "nvidia*"),
        *host.names("/dev/nvidia-caps", "nvidia-cap*"),
    )
    facts = {path: fact for path in paths if (fact := host.fact(path)) is not None}
    return MappingProxyType({path: fact for path, fact in facts.items() if not fact.is_folder})


def _running(host: HostRoot) -> Iterator[str]:
    """MPS programs among the processes that can be seen."""
    names = {program[:_NAME_BYTES] for program in _MPS_PROGRAMS}
    seen = {
        name
        for process in host.names("/proc", "[0-9]*")
        if (name := (host.text(f"{process}/comm") or "").strip()) in names
    }
    if seen:
        # Control and server have the same first fifteen letters.
        yield "an MPS daemon"
