"""GPUs and MIG devices as NVML gives them; what it does not answer is None."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pynvml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

LIBRARY = "libnvidia-ml.so.1"
NODE = "GPUPLUGIN_SIM_NVML"
MIB = 1024**2
NO_INSTANCE = 0xFFFFFFFF


class SmiError(Exception):
    """The program ends with this text and exit status."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def failed(doing: str, error: pynvml.NVMLError) -> SmiError:
    return SmiError(f"{doing}: {error}", int(error.value))


def connect(environment: Mapping[str, str]) -> None:
    """Initialise NVML over the simulated library; raises `SmiError`."""
    if not environment.get(NODE):
        raise SmiError(
            f"no simulated node: {NODE} is not set. Run "
            "'eval \"$(gpuplugin sim env --kubelet-dir DIR)\"' first",
            9,
        )
    folders = environment.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    if not any((Path(folder) / LIBRARY).is_file() for folder in folders if folder):
        # The binding then finds the library that is loaded already, by its name.
        from sim.nvml.library import CannotBuild, built_library

        try:
            ctypes.CDLL(str(built_library(environment)))
        except CannotBuild as error:
            raise SmiError(str(error), 12) from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        text = (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver "
            f"({error}). Make sure that the simulated node runs."
        )
        raise SmiError(text, 9) from error


def number(call: Callable[..., object], *arguments: object) -> int | None:
    found = value(call, *arguments)
    return found if isinstance(found, int) else None


def text(call: Callable[..., object], *arguments: object) -> str | None:
    found = value(call, *arguments)
    # The binding leaves some strings as they are.
    found = found.decode("utf-8", "replace") if isinstance(found, bytes) else found
    return found if isinstance(found, str) else None


def value(call: Callable[..., object], *arguments: object) -> object | None:
    """What a call returns; None where it fails. Raises `SmiError` for a lost GPU."""
    try:
        return call(*arguments)
    except pynvml.NVMLError_GpuIsLost:
        raise
    except pynvml.NVMLError:
        return None


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    kind: str
    """`C` computes, `G` draws."""
    name: str
    memory_bytes: int | None
    gpu_instance: int | None
    compute_instance: int | None


class Handle:
    """A GPU or a MIG device of it."""

    def __init__(self, handle: object) -> None:
        self.handle = handle

    def number(self, call: Callable[..., object], *arguments: object) -> int | None:
        return number(call, self.handle, *arguments)

    def text(self, call: Callable[..., object], *arguments: object) -> str | None:
        return text(call, self.handle, *arguments)

    def value(self, call: Callable[..., object], *arguments: object) -> object | None:
        return value(call, self.handle, *arguments)

    def part(self, call: Callable[..., object], name: str | int, *arguments: object) -> int | None:
        """A member of the structure or sequence that a call returns."""
        found = value(call, self.handle, *arguments)
        if isinstance(found, list | tuple) and isinstance(name, int):
            return int(found[name])
        return None if found is None else int(getattr(found, str(name)))

    def field(self, field: int, scope: int = 0, *, signed: bool = False) -> int | None:
        """The value of a field; None where the GPU has none."""
        found = value(pynvml.nvmlDeviceGetFieldValues, self.handle, [(field, scope)])
        if not isinstance(found, ctypes.Array) or found[0].nvmlReturn:
            return None
        return int(found[0].value.siVal if signed else found[0].value.ullVal)

    @property
    def uuid(self) -> str:
        return str(pynvml.nvmlDeviceGetUUID(self.handle))

    @property
    def name(self) -> str:
        return str(pynvml.nvmlDeviceGetName(self.handle))

    def memory(self, name: str) -> int | None:
        """Bytes of the memory: total, reserved, used or free."""
        v2 = self.value(pynvml.nvmlDeviceGetMemoryInfo, pynvml.nvmlMemory_v2)
        found = v2 or (name != "reserved" and self.value(pynvml.nvmlDeviceGetMemoryInfo)) or None
        return None if found is None else int(getattr(found, name))


class MigDevice(Handle):
    """A MIG device; `index` counts those of its GPU."""

    def __init__(self, handle: object, index: int) -> None:
        super().__init__(handle)
        self.index = index

    @property
    def instances(self) -> tuple[int, int]:
        """The ids of its GPU instance and compute instance."""
        return (
            int(pynvml.nvmlDeviceGetGpuInstanceId(self.handle)),
            int(pynvml.nvmlDeviceGetComputeInstanceId(self.handle)),
        )

    @property
    def profile(self) -> str:
        """The `3g.40gb` of its name."""
        return self.name.rpartition(" ")[2]


class Gpu(Handle):
    """A GPU; `index` is NVML's."""

    def __init__(self, handle: object, index: int) -> None:
        super().__init__(handle)
        self.index = index

    @property
    def bus_id(self) -> str:
        return str(pynvml.nvmlDeviceGetPciInfo(self.handle).busId)

    @property
    def mig_enabled(self) -> bool:
        return bool(self.part(pynvml.nvmlDeviceGetMigMode, 0))

    def mig_devices(self) -> Iterator[MigDevice]:
        for index in range(self.number(pynvml.nvmlDeviceGetMaxMigDeviceCount) or 0):
            found = self.value(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, index)
            if found is not None:
                yield MigDevice(found, index)

    def processes(self) -> list[Process]:
        """Those that compute, then those that draw."""
        compute = self.value(pynvml.nvmlDeviceGetComputeRunningProcesses)
        graphics = self.value(pynvml.nvmlDeviceGetGraphicsRunningProcesses)
        return [
            Process(
                int(one.pid),
                kind,
                text(pynvml.nvmlSystemGetProcessName, one.pid) or "[Not Found]",
                one.usedGpuMemory,
                _instance(one.gpuInstanceId),
                _instance(one.computeInstanceId),
            )
            for kind, listed in (("C", compute), ("G", graphics))
            for one in (listed if isinstance(listed, list) else [])
        ]


def _instance(number: int | None) -> int | None:
    return None if number in (None, NO_INSTANCE) else number


def gpus(wanted: str | None = None) -> Sequence[Gpu]:
    """The GPUs, or those of a list of indices, UUIDs, serials and bus ids; raises `SmiError`."""
    if wanted is not None:
        return [_find(one.strip()) for one in wanted.split(",") if one.strip()]
    found = [_by_index(index) for index in range(int(pynvml.nvmlDeviceGetCount()))]
    if not found:
        raise SmiError("No devices were found", 6)
    return found


def _by_index(index: int) -> Gpu:
    try:
        return Gpu(pynvml.nvmlDeviceGetHandleByIndex(index), index)
    except pynvml.NVMLError as error:
        hint = ""
        if isinstance(error, pynvml.NVMLError_GpuIsLost):
            hint = ".  Reboot the system to recover this GPU"
        text = f"Unable to determine the device handle for GPU{index}: {error}{hint}"
        raise SmiError(text, int(error.value)) from error


def _find(wanted: str) -> Gpu:
    if wanted.isdecimal() and int(wanted) < int(pynvml.nvmlDeviceGetCount()):
        return _by_index(int(wanted))
    for find in (
        pynvml.nvmlDeviceGetHandleByUUID,
        pynvml.nvmlDeviceGetHandleByPciBusId,
        pynvml.nvmlDeviceGetHandleBySerial,
    ):
        handle = value(find, wanted.encode())
        if handle is not None:
            return Gpu(handle, int(pynvml.nvmlDeviceGetIndex(handle)))
    raise SmiError(f"No devices were found: {wanted} is no index, UUID, bus id or serial", 6)
