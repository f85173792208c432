"""Real processes in the place of simulated ones, for tools that look process ids up in /proc.

A stand-in does nothing. It bears its tenant's name, and ends when the node's process ends.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sim.node.node import SimulatedNode

_REFRESH_S = 0.5
"""How often stand-ins are made to follow the tenants, at most."""


class ProcessIds(Protocol):
    """Which process ids the library tells."""

    def refresh(self, node: SimulatedNode) -> None:
        """Follow the node's tenants; it is held still."""
        ...

    def shown(self, pid: int) -> int:
        """The process id to tell for a simulated one."""
        ...

    def close(self) -> None:
        """Nobody asks any more."""
        ...


class SimulatedIds:
    """The simulation's own; no such processes exist."""

    def refresh(self, node: SimulatedNode) -> None:
        """There is nothing to follow."""

    def shown(self, pid: int) -> int:
        """The same."""
        return pid

    def close(self) -> None:
        """There is nothing to end."""


class StandIns:
    """A process for each tenant; see `ProcessIds`."""

    def __init__(self) -> None:
        self._program = shutil.which("cat") or "/bin/cat"
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._due_s = 0.0

    def refresh(self, node: SimulatedNode) -> None:
        """Start and end processes as tenants came and went."""
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
        """End them all."""
        for process in self._processes.values():
            _end(process)
        self._processes.clear()

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        # It reads from a pipe that nobody writes to: however this process ends, so does that.
        return subprocess.Popen(
            [name],
            executable=self._program,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
