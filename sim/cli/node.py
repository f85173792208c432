"""`gpuplugin sim node serve` and `sim env`: a live node, and the environment for its clients."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.cli.parser import add_kubelet_dir
from gpuplugin.cli.text import fail
from gpuplugin.linesocket import ControlError
from sim.node.control import control_socket, status
from sim.node.kernel import kernel_folder
from sim.node.mounts import CannotMount, Namespace
from sim.node.node import SimulatedNode
from sim.node.realtime import RealTimeNode
from sim.node.scenario import ScenarioError, load_scenario
from sim.node.serve import CannotServe, served
from sim.nvml.library import CannotBuild, built_library
from sim.nvml.pids import StandIns
from sim.nvml.server import nvml_socket
from sim.smi.install import PROGRAM, install

if TYPE_CHECKING:
    from gpuplugin.cli.parser import Commands


def add_env(commands: Commands) -> None:
    env = commands.add_parser(
        "env",
        help="print what lets NVML programs see the node, or run one",
        epilog="exit status: that of COMMAND; 1 if it cannot be run",
    )
    env.set_defaults(module="sim.cli.node", function="env")
    add_kubelet_dir(env)
    env.add_argument(
        "--mount",
        action="store_true",
        help="with COMMAND: put library, nvidia-smi, device nodes and the kernel's files into "
        "their real places, in a mount namespace of its own",
    )
    env.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="run it instead of printing"
    )


def serve(parsed: argparse.Namespace) -> int:
    """Run a node in the foreground until a signal; 1 if it cannot be served."""
    folder = Path(parsed.kubelet_dir)
    if _is_served(folder):
        return fail(f"{folder} has a simulated node already, at {control_socket(folder)}")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        scenario = load_scenario(parsed.scenario)
        node = RealTimeNode(SimulatedNode(scenario, name=parsed.node_name))
        with served(node, folder, StandIns() if parsed.processes else None):
            node.start()
            with node.read() as model:
                count, name = len(model.present), model.scenario.name
            print(f"node {name} with {count} GPUs at {folder}", flush=True)
            stop.wait()
        node.stop()
    except (ScenarioError, CannotServe) as error:
        return fail(error)
    return 0


def env(parsed: argparse.Namespace) -> int:
    """Print what to export, or run a command with it; 1 if that cannot be done."""
    command = parsed.command[1:] if parsed.command[:1] == ["--"] else parsed.command
    if parsed.mount and not command:
        return fail("--mount needs a command: sim env --kubelet-dir DIR --mount -- COMMAND")
    folder = Path(parsed.kubelet_dir)
    try:
        library = built_library()
        programs = install(library.parent)
    except CannotBuild as error:
        return fail(error)
    if not command:
        _print_exports(folder, library.parent, programs)
        return 0
    try:
        if parsed.mount:
            _enter(folder, library, programs)
        return _exec(command, _environment(folder, library.parent, programs))
    except (CannotMount, ControlError) as error:
        return fail(error)


def _variables(folder: Path) -> dict[str, str]:
    kernel = kernel_folder(folder).absolute()
    return {
        "GPUPLUGIN_SIM_NVML": str(nvml_socket(folder).absolute()),
        "GPUPLUGIN_SYSFS_ROOT": str(kernel / "sys"),
        "GPUPLUGIN_PROCFS_ROOT": str(kernel / "proc"),
    }


def _paths(library: Path, programs: Path) -> dict[str, Path]:
    """Folders that go before those in the variables."""
    return {"LD_LIBRARY_PATH": library, "PATH": programs}


def _print_exports(folder: Path, library: Path, programs: Path) -> None:
    for name, path in _paths(library, programs).items():
        print(f'export {name}={shlex.quote(str(path))}"${{{name}:+:${name}}}"')
    for name, text in _variables(folder).items():
        print(f"export {name}={shlex.quote(text)}")


def _environment(folder: Path, library: Path, programs: Path) -> dict[str, str]:
    paths = {
        name: ":".join(filter(None, (str(path), os.environ.get(name))))
        for name, path in _paths(library, programs).items()
    }
    return {**os.environ, **paths, **_variables(folder)}


def _enter(folder: Path, library: Path, programs: Path) -> None:
    """Enter a mount namespace; raises `CannotMount`, or `ControlError` without a node."""
    minors = [one.index for one in status(control_socket(folder))]
    namespace = Namespace(kernel_folder(folder))
    namespace.show(library, [programs / PROGRAM], minors)
    for missing in namespace.missing:
        print(f"warning: not in its place: {missing}", file=sys.stderr)


def _exec(command: list[str], environment: dict[str, str]) -> int:
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 # the user's own command
    except OSError as error:
        return fail(f"{command[0]} cannot be run: {error.strerror}")


def _is_served(folder: Path) -> bool:
    try:
        status(control_socket(folder))
    except ControlError:
        return False
    return True
