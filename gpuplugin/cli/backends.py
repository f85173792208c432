"""Makes the hardware backend that the configuration names."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.config.plans import driver_root

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpuplugin.config.settings import Settings
    from hal import Backend


class BackendError(Exception):
    """The backend cannot be made; the text says why."""


@contextmanager
def make_backend(settings: Settings, *, control: bool, host: Path = Path("/")) -> Iterator[Backend]:
    """The backend, not opened; a simulated node listens for faults if `control` is set.

    `host` is where the host's root is mounted, for a look from elsewhere.

    Raises:
        BackendError: the scenario cannot be used, or the control socket cannot be made.
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
            )
        else:
            yield _simulated(settings, stack, control=control)


def _simulated(settings: Settings, stack: ExitStack, *, control: bool) -> Backend:
    from sim.node.node import SimulatedNode
    from sim.node.realtime import RealTimeNode, SimBackend
    from sim.node.scenario import ScenarioError, load_scenario
    from sim.node.serve import CannotServe, served

    try:
        node = RealTimeNode(SimulatedNode(load_scenario(settings.daemon.scenario)))
    except ScenarioError as error:
        raise BackendError(str(error)) from error
    stack.callback(node.stop)
    if control:
        try:
            stack.enter_context(served(node, settings.daemon.kubelet_dir))
        except CannotServe as error:
            raise BackendError(str(error)) from error
    return SimBackend(node)
