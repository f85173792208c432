"""A simulated node of eight GPUs in a process of its own, which plugins see through NVML."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks.servers import DidNotStart
from gpuplugin.linesocket import ControlError
from sim.node.control import control_socket, status
from sim.node.serve import kernel_folder
from sim.nvml.library import CannotBuild, built_library
from sim.nvml.server import nvml_socket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GPUS = 8
START_TIMEOUT_S = 30.0
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Node:
    """GPUs for plugins: which backend of ours sees them, and what is in its environment for that.

    `folder` is where the node listens; None if each plugin has a node of its own.
    """

    backend: Literal["nvml", "sim"]
    environment: dict[str, str]
    folder: Path | None

    def control(self, kubelet_dir: Path) -> Path:
        """Where faults are injected for the plugin of this kubelet folder."""
        return control_socket(self.folder or kubelet_dir)


@contextmanager
def simulated_node(folder: Path) -> Iterator[Node]:
    """A node, until the block ends.

    Without a C compiler other processes cannot see it: then it is the `sim` backend for our own
    plugin, and nothing for others.

    Raises:
        DidNotStart: it did not come up.
    """
    try:
        library = built_library()
    except CannotBuild:
        yield Node("sim", {}, None)
        return
    command = [sys.executable, "-m", "gpuplugin", "sim", "node", "serve"]
    process = subprocess.Popen(
        [*command, "--kubelet-dir", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for(folder, process)
        yield Node("nvml", _environment(library, folder), folder)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(folder: Path, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            status(control_socket(folder))
        except ControlError as error:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise DidNotStart(f"the simulated node did not come up: {error}") from error
            time.sleep(_POLL_S)
        else:
            return


def _environment(library: Path, folder: Path) -> dict[str, str]:
    """What `gpuplugin sim env` prints."""
    kernel = kernel_folder(folder).absolute()
    others = os.environ.get("LD_LIBRARY_PATH")
    return {
        "LD_LIBRARY_PATH": f"{library.parent}:{others}" if others else str(library.parent),
        "GPUPLUGIN_SIM_NVML": str(nvml_socket(folder).absolute()),
        "GPUPLUGIN_SYSFS_ROOT": str(kernel / "sys"),
        "GPUPLUGIN_PROCFS_ROOT": str(kernel / "proc"),
    }
