"""What surrounds the simulated NVML library in a test: its loading, and the kernel's files."""

from __future__ import annotations

import _ctypes
import ctypes
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pynvml
import pytest

from hal.nvml.inventory import sysfs_bus_id
from hal.nvml.migminors import MIG_MINORS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from hal import Gpu


@contextmanager
def bound(library: Path, socket: Path) -> Iterator[None]:
    """The binding calls this library, which calls the node at `socket`.

    It is unloaded afterwards, so that the driver's own can be loaded in the same process.
    """
    loaded = ctypes.CDLL(str(library))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUPLUGIN_SIM_NVML", str(socket))
        patch.setattr(pynvml, "nvmlLib", loaded)
        patch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        try:
            yield
        finally:
            _ctypes.dlclose(loaded._handle)


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """The files in sysfs and procfs that a driver's GPUs have."""

    sysfs: Path
    procfs: Path

    def write(self, gpus: Iterable[Gpu]) -> None:
        """For these GPUs and their MIG devices."""
        minors = self.procfs / MIG_MINORS
        minors.parent.mkdir(parents=True)
        lines = []
        for gpu in gpus:
            self._write_device(gpu)
            for mig in gpu.mig_devices:
                where = f"gpu{gpu.minor}/gi{mig.gpu_instance}"
                gi, ci = (node.rpartition("cap")[2] for node in mig.device_nodes[1:])
                lines += [f"{where}/access {gi}", f"{where}/ci0/access {ci}"]
        minors.write_text("\n".join(lines) + "\n")

    def probe_again(self, gpu: Gpu) -> None:
        """The kernel found the device anew: its folder is another one."""
        folder = self._folder(gpu)
        folder.rename(folder.with_suffix(".old"))
        self._write_device(gpu)
        shutil.rmtree(folder.with_suffix(".old"))

    def _write_device(self, gpu: Gpu) -> None:
        folder = self._folder(gpu)
        folder.mkdir(parents=True)
        (folder / "numa_node").write_text(f"{gpu.numa_node}\n")

    def _folder(self, gpu: Gpu) -> Path:
        return self.sysfs / "bus/pci/devices" / sysfs_bus_id(gpu.pci_bus_id)
