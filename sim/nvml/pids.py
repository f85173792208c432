"""The process ids that the library reports, and processes for them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.node.node import SimulatedNode


_LONGEST_NAME = 200
_REFRESH_S = 0.5
"""How often stand-ins are made to follow the tenants, at most."""


class ProcessIds:
    """The process ids that the library reports: those of the simulation, without processes."""

    def refresh(self, node: SimulatedNode) -> None:
        """Follow the tenants of the node."""

    def shown(self, pid: int) -> int:
        return pid

    def close(self) -> None:
        """End the processes."""


class StandIns(ProcessIds):
    """A real process for each tenant, which has its name in `cmdline` and `comm`."""

    def __init__(self) -> None:
        self._program = shutil.which("cat") or "/bin/cat"
        self._links = tempfile.TemporaryDirectory(prefix="gpuplugin-tenants-")
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._due_s = 0.0

    def refresh(self, node: SimulatedNode) -> None:
        now_s = time.monotonic()
        if now_s < self._due_s:
            return
        self._due_s = now_s + _REFRESH_S
        names = {process.pid: process.name for gpu in node.present for process in gpu.processes()}
        for pid in self._processes.keys() - names.keys():
            _end(self._processes.pop(pid))
        for pid in names.keys() - self._processes.keys():
            self._processes[pid] = self._start(names[pid])

    def shown(self, pid: int) -> int:
        """That of the stand-in; a tenant that came this moment has none yet."""
        process = self._processes.get(pid)
        return pid if process is None else process.pid

    def close(self) -> None:
        for process in self._processes.values():
            _end(process)
        self._processes.clear()
        self._links.cleanup()

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        # It reads from a pipe without a writer: however this process ends, so does that. The kernel
        # takes `comm` from the name of the file that is executed.
        return subprocess.Popen(
            [name],
            executable=self._link(name),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _link(self, name: str) -> Path:
        """The program under the name of a tenant, as far as a file can have it."""
        safe = name.replace("/", "_").replace("\0", "_").encode()[:_LONGEST_NAME]
        link = Path(self._links.name) / (safe.decode(errors="ignore").strip(".") or "tenant")
        if not link.is_symlink():
            link.symlink_to(self._program)
        return link


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
