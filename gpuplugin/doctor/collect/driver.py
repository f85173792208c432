"""Collects facts of the driver: its files, modules and device nodes, and what NVML reports."""

from __future__ import annotations

import queue
import re
import threading
import time
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from gpuplugin.doctor.facts import DriverFacts, Failure, GpuFacts, HardwareFacts, Library, PciGpu
from hal import DriverNotFound, DriverUnavailable, GpuState, HalError
from hal.nvml.library import LIBRARY, LIBRARY_DIRS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from gpuplugin.doctor.collect.host import HostRoot
    from gpuplugin.doctor.facts import FileFact
    from hal import Backend, CallFailure, Gpu

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


def collect_driver(host: HostRoot, root: str) -> DriverFacts:
    below = root.rstrip("/")
    own = tuple(_libraries(host, below, LIBRARY_DIRS))
    elsewhere = (
        library
        for place in _ELSEWHERE
        if place != below
        for library in _libraries(host, place, LIBRARY_DIRS)
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
    paths = (*host.names("/dev", "nvidia*"), *host.names("/dev/nvidia-caps", "nvidia-cap*"))
    facts = {path: fact for path in paths if (fact := host.fact(path)) is not None}
    return MappingProxyType({path: fact for path, fact in facts.items() if not fact.is_folder})


def _running(host: HostRoot) -> Iterator[str]:
    names = {program[:_NAME_BYTES] for program in _MPS_PROGRAMS}
    seen = {
        name
        for process in host.names("/proc", "[0-9]*")
        if (name := (host.text(f"{process}/comm") or "").strip()) in names
    }
    if seen:
        # Control and server have the same first fifteen letters.
        yield "an MPS daemon"


_T = TypeVar("_T")

_CALL_S = 3.0
"""The longest that one question about one GPU may take; opening may take the whole budget."""


class _Hung(Exception):
    """A call did not return in time."""


class _Asker:
    """Makes calls in threads of their own, all of them within one budget of seconds."""

    def __init__(self, budget_s: float) -> None:
        self._ends_s = time.monotonic() + budget_s
        self.hung = False

    def ask(self, call: Callable[[], _T], at_most_s: float | None = None) -> _T:
        """What `call` returns.

        Raises:
            HalError: what the call raised.
            _Hung: it did not return in time.
        """
        answers: queue.SimpleQueue[tuple[_T | None, HalError | None]] = queue.SimpleQueue()

        def work() -> None:
            try:
                answers.put((call(), None))
            except HalError as error:
                answers.put((None, error))

        threading.Thread(target=work, name="doctor", daemon=True).start()
        left_s = max(0.1, self._ends_s - time.monotonic())
        try:
            answer, error = answers.get(timeout=min(left_s, at_most_s or left_s))
        except queue.Empty:
            self.hung = True
            raise _Hung from None
        if error is not None:
            raise error
        return answer  # type: ignore[return-value] # no error: it is what the call returned


def collect_hardware(backend: Backend, name: str, budget_s: float) -> HardwareFacts:
    """What the backend called `name` reports within `budget_s`."""
    asker = _Asker(budget_s)
    try:
        asker.ask(backend.open)
        version = asker.ask(lambda: backend.driver_version)
        gpus = asker.ask(backend.gpus)
        facts = tuple(_of_gpu(backend, gpu, asker) for gpu in gpus)
    except _Hung:
        return HardwareFacts(
            name, failure=Failure.HUNG, cause=f"a call to the driver takes over {budget_s:g} s"
        )
    except HalError as error:
        return HardwareFacts(name, failure=_failure(error), cause=error.cause, remedy=error.remedy)
    finally:
        if not asker.hung:
            # Not even closing may hold us: a driver can begin to hang at any time.
            with suppress(_Hung, HalError):
                asker.ask(backend.close, _CALL_S)
    return HardwareFacts(name, version, facts)


def _failure(error: HalError) -> Failure:
    if isinstance(error, DriverNotFound):
        return Failure.NOT_FOUND
    return Failure.UNAVAILABLE if isinstance(error, DriverUnavailable) else Failure.OTHER


def _of_gpu(backend: Backend, gpu: Gpu, asker: _Asker) -> GpuFacts:
    if gpu.state is GpuState.LOST:
        return GpuFacts(gpu)
    try:
        probe = asker.ask(lambda: backend.probe(gpu.uuid), _CALL_S)
    except _Hung:
        return GpuFacts(gpu, problem=f"a call about it takes over {_CALL_S:g} s")
    except HalError as error:
        return GpuFacts(gpu, problem=str(error))
    names: tuple[str, ...] = ()
    unknown: tuple[CallFailure, ...] = ()
    with suppress(_Hung, HalError):
        unknown = asker.ask(lambda: backend.telemetry(gpu.uuid), _CALL_S).unknown
    with suppress(_Hung, HalError):
        processes = asker.ask(lambda: backend.processes(gpu.uuid), _CALL_S)
        names = tuple(process.name for process in processes)
    return GpuFacts(gpu, probe, names, unknown=unknown)
