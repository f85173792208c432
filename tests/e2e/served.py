"""A simulated node that a process owns, and other processes that see it through NVML."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sim.nvml.library import CannotBuild, built_library
from tests.e2e.conftest import DEADLINE_S, Node, Plugin, Process

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path


class ServedNode(Process):
    """`gpuplugin sim node serve`, once it serves; `env` is a shell's that took `sim env`'s exports.
    `node` is the same seen through the command line.

    Skips the test where there is no C compiler.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        try:
            built_library()
        except CannotBuild as error:
            pytest.skip(str(error))
        self.node = Node(folder)
        super().__init__("sim", "node", "serve", "--kubelet-dir", str(folder), *arguments)
        try:
            self.says(" GPUs at ")
            self.env = _exports(folder)
        except BaseException:
            self.__exit__()
            raise

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment that sees the node, to its end."""
        found = shutil.which(program, path=os.path.dirname(sys.executable))  # noqa: PTH120
        assert found, f"{program} is not installed"
        return subprocess.run(
            [found, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.env,
            timeout=DEADLINE_S,
            check=False,
        )


class StartPlugin:
    """Starts the plugin with one of the backends; the simulated node is that of `scenario`.

    The plugin owns that node, or sees one through NVML that another process owns.
    """

    def __init__(self, backend: str, node: Node, stack: ExitStack, *arguments: str) -> None:
        self.backend = backend
        self._arguments = ("--backend", backend, *node.at, *arguments)
        self._node = node
        self._stack = stack
        self._served: ServedNode | None = None

    def serve(self, scenario: str = "default") -> None:
        """Have the process that owns the node, where it is not the plugin's."""
        if self.backend != "sim" and self._served is None:
            served = ServedNode(self._node.dir, "--scenario", scenario)
            self._served = self._stack.enter_context(served)

    def __call__(self, *arguments: str, scenario: str = "default") -> Plugin:
        self.serve(scenario)
        if self._served is None:
            return Plugin(*self._arguments, "--scenario", scenario, *arguments)
        return Plugin(*self._arguments, *arguments, env=self._served.env)


def _exports(folder: Path) -> dict[str, str]:
    """The environment after `eval "$(gpuplugin sim env)"`."""
    command = f'eval "$({sys.executable} -m gpuplugin sim env --kubelet-dir {folder})" && env -0'
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    pairs = (one.partition("=") for one in done.stdout.split("\0") if one)
    return {name: value for name, _, value in pairs}
