"""The hardware backend that the configuration names, and the GPUs that it lists."""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.cli.options import load
from gpuplugin.cli.text import SimulatorMissing, needs_simulator
from gpuplugin.config.loaded import ConfigError
from gpuplugin.config.plans import driver_root, inventory_plan
from gpuplugin.core.inventory import Inventory, InventoryError, build_inventory
from hal import DriverNotFound, HalError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from gpuplugin.config.settings import DaemonSettings, Settings
    from hal import Backend, Gpu
    from sim.node.realtime import RealTimeNode


_LOOKS_OF_A_SURVEY = 12
"""Everything is read once a minute, where GPUs are looked at every 5 s."""


class BackendError(Exception):
    """The backend cannot be made; the text says why."""


@contextmanager
def make_backend(settings: Settings, *, control: bool, host: Path = Path("/")) -> Iterator[Backend]:
    """The backend, not opened; a simulated node listens for faults if `control` is set.

    `host` is where the host's root is mounted.

    Raises:
        BackendError: the scenario cannot be used, the simulator is not installed, or the control
            socket cannot be made.
    """
    with ExitStack() as stack:
        if settings.daemon.backend == "nvml":
            from hal.nvml import NvmlBackend

            own = host == Path("/")
            mounted = host / settings.flags.nvidia_driver_root.lstrip("/")
            yield NvmlBackend(
                driver_root(settings) if own else mounted,
                sysfs_root=settings.daemon.sysfs_root,
                procfs_root=settings.daemon.procfs_root,
                # The daemon lists the GPUs itself, as often as it is configured to.
                rescan_s=math.inf,
                survey_s=_LOOKS_OF_A_SURVEY * settings.health.probe_interval,
            )
        else:
            yield _simulated(settings, stack, control=control)


def _simulated(settings: Settings, stack: ExitStack, *, control: bool) -> Backend:
    try:
        with needs_simulator("the backend sim"):
            from sim.node.node import SimulatedNode
            from sim.node.pools import scenario_of_node
            from sim.node.realtime import RealTimeNode, SimBackend
            from sim.node.scenario import ScenarioError
            from sim.node.serve import CannotServe, served
    except SimulatorMissing as error:
        raise BackendError(str(error)) from error
    name = settings.daemon.node_name
    try:
        scenario = scenario_of_node(settings.daemon.scenario, name)
        node = RealTimeNode(SimulatedNode(scenario, name=name))
    except ScenarioError as error:
        raise BackendError(str(error)) from error
    stack.callback(node.stop)
    if control:
        try:
            stack.enter_context(served(node, settings.daemon.kubelet_dir))
            if settings.daemon.pod_files:
                _serve_pods(node, settings.daemon, stack)
        except CannotServe as error:
            raise BackendError(str(error)) from error
    return SimBackend(node)


def _serve_pods(node: RealTimeNode, daemon: DaemonSettings, stack: ExitStack) -> None:
    """Imported here: it brings much with it that a node without pods does not need."""
    from sim.pods.door import pod_door
    from sim.pods.loads import pod_loads

    stack.enter_context(pod_door(node, Path(daemon.pod_files)))
    stack.enter_context(pod_loads(node, daemon))


class CannotList(Exception):
    """The configuration, the scenario or the driver cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Listed:
    settings: Settings
    gpus: tuple[Gpu, ...]
    inventory: Inventory


def list_gpus(parsed: argparse.Namespace) -> Listed:
    """List the GPUs of this machine, for commands that only show them.

    Raises:
        CannotList: with the reason.
    """
    try:
        settings = load(parsed).settings
        gpus = read_gpus(settings)
        inventory = build_inventory(gpus, inventory_plan(settings))
    except (ConfigError, BackendError, HalError, InventoryError) as error:
        raise CannotList(told(error)) from error
    return Listed(settings, gpus, inventory)


def told(error: Exception) -> str:
    """An error as a person reads it on a terminal: the main thing first, details below."""
    if not isinstance(error, DriverNotFound):
        return str(error)
    return "\n".join(
        (
            f"there is no NVIDIA driver on this machine: {error.library} was not found",
            "  without a GPU: add '--backend sim' for simulated GPUs",
            f"  with a GPU:    {error.remedy}",
            "  searched:",
            *(f"    {place}" for place in error.searched),
        )
    )


def read_gpus(settings: Settings) -> tuple[Gpu, ...]:
    """The GPUs of this machine; raises `BackendError` or `HalError`."""
    with make_backend(settings, control=False) as backend:
        backend.open()
        try:
            return tuple(backend.gpus())
        finally:
            backend.close()
