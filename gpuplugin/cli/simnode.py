"""`gpuplugin sim node serve` and `sim env`: a live node, and the environment for its clients."""

from __future__ import annotations

import shlex
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.cli.parser import add_kubelet_dir
from gpuplugin.cli.text import fail
from gpuplugin.linesocket import ControlError
from sim.node.control import control_socket, status
from sim.node.node import SimulatedNode
from sim.node.realtime import RealTimeNode
from sim.node.scenario import ScenarioError, load_scenario
from sim.node.serve import CannotServe, kernel_folder, served
from sim.nvml.library import CannotBuild, built_library
from sim.nvml.server import StandIns, nvml_socket
from sim.smi.install import install

if TYPE_CHECKING:
    import argparse

    from gpuplugin.cli.parser import Commands


def add_env(commands: Commands) -> None:
    env = commands.add_parser("env", help="print what lets NVML programs see the node")
    env.set_defaults(module="simnode", function="env")
    add_kubelet_dir(env)


def serve(parsed: argparse.Namespace) -> int:
    """Run a node in the foreground until a signal; 1 if it cannot be served."""
    folder = Path(parsed.kubelet_dir)
    if _is_served(folder):
        return fail(f"{folder} has a simulated node already, at {control_socket(folder)}")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        node = RealTimeNode(SimulatedNode(load_scenario(parsed.scenario)))
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
    """Print what to export; 1 if the library cannot be built."""
    try:
        library = built_library()
    except CannotBuild as error:
        return fail(error)
    folder = shlex.quote(str(library.parent))
    programs = shlex.quote(str(install(library.parent)))
    path = shlex.quote(str(nvml_socket(Path(parsed.kubelet_dir)).absolute()))
    print(f'export LD_LIBRARY_PATH={folder}"${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"')
    print(f'export PATH={programs}"${{PATH:+:$PATH}}"')
    print(f"export GPUPLUGIN_SIM_NVML={path}")
    kernel = kernel_folder(Path(parsed.kubelet_dir)).absolute()
    print(f"export GPUPLUGIN_SYSFS_ROOT={shlex.quote(str(kernel / 'sys'))}")
    print(f"export GPUPLUGIN_PROCFS_ROOT={shlex.quote(str(kernel / 'proc'))}")
    return 0


def _is_served(folder: Path) -> bool:
    try:
        status(control_socket(folder))
    except ControlError:
        return False
    return True
