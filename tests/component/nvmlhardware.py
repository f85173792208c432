"""A simulated node as the NVML backend sees it, over the library, in the process of the test."""

from __future__ import annotations

import shutil
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from hal.nvml import NvmlBackend
from hal.nvml.binding import pynvml_api
from sim.node.serve import kernel_files
from sim.nvml.functions.events import EventSets
from sim.nvml.server import NvmlServer
from tests.component.running import Hardware
from tests.component.waiting import eventually
from tests.conformance.library import bound

if TYPE_CHECKING:
    from pathlib import Path

    from hal import Probe


class CountingNvmlBackend(NvmlBackend):
    """It counts how often each GPU was probed."""

    probes: dict[str, int]

    def probe(self, uuid: str) -> Probe:
        answer = super().probe(uuid)
        self.probes[uuid] = self.probes.get(uuid, 0) + 1
        return answer


class NvmlHardware(Hardware):
    """As `Hardware`; `folder` is one of its own, and `library` the library's file."""

    def __init__(self, folder: Path, library: Path, count: int = 8, **scenario: object) -> None:
        super().__init__(count, **scenario)
        self._threads = set(threading.enumerate())
        self._left = ExitStack()
        self.node.start()
        kernel = self._left.enter_context(kernel_files(self.node, folder / "kernel"))
        # A copy is a library of its own: nothing of an earlier node is in it.
        own = folder / library.name
        shutil.copy(library, own)
        self._left.enter_context(bound(own, folder / "nvml.sock"))
        self._server = NvmlServer(self.node, folder / "nvml.sock")
        self.backend = CountingNvmlBackend(
            api=pynvml_api(),
            sysfs_root=kernel.sysfs,
            procfs_root=kernel.procfs,
            rescan_s=0.0,
        )
        self.backend.probes = {}

    @property
    def heard(self) -> bool:
        """True if somebody listens to all GPUs that answer, and has taken all events."""
        with self.node.read() as model:
            owners = (getattr(one, "__self__", None) for one in model.listeners)
            sets = [
                one
                for owner in owners
                if isinstance(owner, EventSets)
                for one in owner._sets.values()
            ]
            present = {gpu.identity.uuid for gpu in model.present if not gpu.lost}
            answering = {uuid for uuid in present if not model.hangs(uuid)}
            # A call that was given up while the driver hung may leave an older set behind.
            return bool(sets) and not sets[-1].waiting and answering <= sets[-1].types.keys()

    def stop(self) -> None:
        """Stop the node, and let go of the library when nobody is in it any more."""
        self._server.close()
        super().stop()
        eventually(lambda: not self._in_the_library())
        self.backend.close()  # what could not be shut down while a call was in it
        self._left.close()

    def _in_the_library(self) -> list[threading.Thread]:
        """Threads of the daemon that came since the start."""
        return [
            thread
            for thread in set(threading.enumerate()) - self._threads
            if thread.name.startswith("hal-")
        ]
