"""What a node has for its pods in a folder: library, program, and the sockets where both ask."""

from __future__ import annotations

import logging
import os
import select
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Final

from gpuplugin.daemon.wholefiles import write_whole
from sim.node.serve import CannotServe
from sim.nvml.library import LIBRARY, PROGRAM, CannotBuild, built_library, built_program
from sim.nvml.server import NvmlServer
from sim.socketfile import SocketFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sim.node.realtime import RealTimeNode

RUN: Final = "run"
NVML_SOCKET: Final = "nvml.sock"
SMI_SOCKET: Final = "smi.sock"
_FOR_ALL: Final = 0o555
_BACKLOG: Final = 32
_PAUSE_S: Final = 1.0
"""After a renderer that ended, so that one that cannot start does not take all time."""

log = logging.getLogger(__name__)


@contextmanager
def pod_door(node: RealTimeNode, folder: Path) -> Iterator[None]:
    """Fill the folder and serve its sockets to pods.

    Its `lib64`, `bin` and `run` are for everybody to read. The sockets are made anew by the next
    process, in the same folder; the files stay.

    Raises:
        CannotServe: a file or socket cannot be made.
    """
    with ExitStack() as stack:
        try:
            library, program = built_library(), built_program()
            put_files(folder, library, program)
            nvml = folder / RUN / NVML_SOCKET
            stack.enter_context(closing(NvmlServer(node, nvml, for_pods=True)))
            stack.enter_context(closing(_SmiDoor(folder / RUN / SMI_SOCKET, nvml, library)))
        except CannotBuild as error:
            text = f"what pods with simulated GPUs get cannot be made: {error}"
            raise CannotServe(text) from error
        except OSError as error:
            raise CannotServe(f"{folder} is no place for what pods get: {error}") from error
        yield


def put_files(folder: Path, library: Path, program: Path) -> None:
    """Put both files into their places, where others may be using older ones, or putting theirs.

    Raises `OSError`.
    """
    for place, source, mode in (
        (folder / "lib64" / LIBRARY, library, 0o644),
        (folder / "bin" / PROGRAM, program, 0o755),
    ):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, source.read_bytes(), mode, synced=True)
    (folder / RUN).mkdir(exist_ok=True)
    for one in (folder, *(folder / name for name in ("lib64", "bin", RUN))):
        if one.stat().st_mode & _FOR_ALL != _FOR_ALL:  # another user's, if it is so already
            one.chmod(0o755)


class _SmiDoor:
    """Listens for `nvidia-smi`; at the first request it starts a renderer, which then answers."""

    def __init__(self, path: Path, nvml: Path, library: Path) -> None:
        self._command = [sys.executable, "-P", "-m", "sim.smi.renderer"]
        self._arguments = [str(nvml), str(library)]
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(str(path))
            self._file = SocketFile(path)
            path.chmod(0o666)
            self._listener.listen(_BACKLOG)
        except OSError:
            self._listener.close()
            raise
        self._listener.setblocking(False)
        self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="sim-smi", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._file.remove()
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._listener.close()
        os.close(self._stop)

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._listener.fileno(), self._stop], [], [])
            if self._stop in ready:
                return
            if self._render_until_idle():
                return

    def _render_until_idle(self) -> bool:
        """Run a renderer to its end; true if this is to stop."""
        descriptor = self._listener.fileno()
        try:
            process = subprocess.Popen(
                [*self._command, str(descriptor), *self._arguments],
                pass_fds=[descriptor],
                stdin=subprocess.PIPE,  # its end, however it comes, ends the renderer
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            log.warning("nvidia-smi of pods cannot be answered: %s", error)
            return self._stops_within(_PAUSE_S)
        end = os.pidfd_open(process.pid)
        try:
            ready, _, _ = select.select([end, self._stop], [], [])
        finally:
            os.close(end)
        with process:  # closes its standard input, and waits
            pass
        status = process.returncode
        if status > 0:
            log.warning("the renderer of nvidia-smi ended with status %d", status)
        return self._stop in ready or bool(status and self._stops_within(_PAUSE_S))

    def _stops_within(self, pause_s: float) -> bool:
        ready, _, _ = select.select([self._stop], [], [], pause_s)
        return bool(ready)
