"""The way by which the node's GPUs are given to pods: one of two, chosen by `--allocation`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol

from gpuplugin.daemon.serving.endpoint import ServingContext
from gpuplugin.daemon.serving.frontdoor import DevicePluginDoor
from gpuplugin.daemon.serving.sockets import KubeletDirs
from gpuplugin.daemon.tasks import Fatal
from gpuplugin.rpc import make_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gpuplugin.config.settings import Settings
    from gpuplugin.core.nodeview import NodeView
    from gpuplugin.core.usage import ClaimUse, Holding
    from gpuplugin.daemon.files import FileWatch
    from gpuplugin.daemon.http.metrics import Metrics
    from gpuplugin.daemon.http.pageview import CallView
    from gpuplugin.daemon.status import StatusBoard
    from hal import TimeSliceLevel

_DRA_NEEDS: Final = ("gpuplugin.daemon.dra.frontdoor", "gpuplugin.daemon.cluster.kubeapi")


class SetTimeSlices(Protocol):
    def __call__(self, levels: Mapping[str, TimeSliceLevel], wait_s: float) -> dict[str, str]:
        """In a thread: set what claims ask for, by GPU; why that failed for which GPUs."""


@dataclass(frozen=True, slots=True)
class DoorContext:
    """What a door stands in; `driver_version` is that of the GPUs' driver."""

    status: StatusBoard
    metrics: Metrics
    files: FileWatch
    driver_version: Callable[[], str]
    set_time_slices: SetTimeSlices


class FrontDoor(Protocol):
    """Serves the node's newest view to the kubelet and the cluster; for the event loop alone."""

    def calls(self) -> Sequence[CallView]:
        """The last calls that gave GPUs to pods, the newest first. In any thread."""

    def holdings(self, uses: Iterable[ClaimUse]) -> Iterable[Holding]:
        """Claims that the kubelet lists as what pods hold. In any thread."""

    def held(self) -> Iterable[Holding] | None:
        """What is held as far as the door knows itself, None if it does not. In any thread."""

    def publish(self, view: NodeView) -> None:
        """Serve this view from now on."""

    async def run(self) -> None:
        """Serve until cancelled; sockets are removed when this returns."""


def load_front_door(settings: Settings) -> None:
    """Import what the door needs, before anything serves; raises `Fatal` if it is not installed."""
    if settings.daemon.allocation != "dra":
        return
    try:
        for name in _DRA_NEEDS:
            import_module(name)
    except ImportError as error:
        raise Fatal(
            "--allocation dra needs a Kubernetes client, which is not installed "
            f"({error}): pip install 'gpuplugin[kubernetes]'"
        ) from error


def make_front_door(settings: Settings, context: DoorContext) -> FrontDoor:
    """The door that the configuration names; raises `Fatal` without what it needs."""
    daemon = settings.daemon
    engine = make_engine(daemon.rpc_engine)
    if daemon.allocation == "device-plugin":
        dirs = KubeletDirs(daemon.kubelet_dir, daemon.kubelet_socket)
        serving = ServingContext(
            dirs,
            daemon.way_of_registration,
            engine,
            context.status,
            context.metrics,
            context.files,
        )
        return DevicePluginDoor(serving, daemon.dra_driver_name)
    load_front_door(settings)
    from gpuplugin.daemon.cluster.kubeapi import NoCluster, cluster
    from gpuplugin.daemon.dra.frontdoor import DraDoor, read_boot_id

    try:
        boot_id = read_boot_id(daemon.procfs_root)
        return DraDoor(settings, context, engine, cluster(), boot_id)
    except OSError as error:
        raise Fatal(f"--allocation dra: the boot id cannot be read: {error}") from error
    except NoCluster as error:
        raise Fatal(f"--allocation dra: {error}") from error
