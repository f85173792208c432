"""The simulated node behind the hardware layer: `hal.Backend` in real time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal import GpuLost, NotSupported

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hal import ComputeProcess, Event, Gpu, Link, Probe, Telemetry, TimeSliceLevel
    from sim.gpu.gpu import SimulatedGpu
    from sim.node.node import SimulatedNode
    from sim.node.realtime import RealTimeNode


class SimBackend:
    """See `hal.Backend`; the node's time starts with the first `open` and goes on after `close`.

    A call to a driver or about a GPU that hangs does not return, whatever `close` does; the node's
    `stop` ends it with `DriverUnavailable`.
    """

    def __init__(self, node: RealTimeNode) -> None:
        self._node = node
        self._links: tuple[frozenset[str], Mapping[tuple[str, str], Link]] | None = None
        with node.present() as model:
            self._driver_version = model.scenario.driver_version

    def open(self) -> None:
        """Start the node's clock; the driver may hang or be unavailable from the first moment."""
        self._node.start()
        with self._node.called():
            pass

    def close(self) -> None:
        """Make a blocked `wait_events` return."""
        self._node.interrupt()

    @property
    def driver_version(self) -> str:
        """The version that the scenario names; known even while the driver does not answer."""
        return self._driver_version

    def gpus(self) -> tuple[Gpu, ...]:
        """All GPUs, lost ones included."""
        with self._node.called() as model:
            return model.listed()

    def wait_events(self, timeout_s: float) -> Sequence[Event]:
        """Events since the last call."""
        return self._node.wait_events(timeout_s)

    def probe(self, uuid: str) -> Probe:
        """Whether the GPU can be used now."""
        with self._node.called(uuid) as model:
            return model.gpu(uuid).probe()

    def telemetry(self, uuid: str) -> Telemetry:
        """A fresh reading."""
        with self._node.called(uuid) as model:
            return _reachable(model, uuid).telemetry(model.now_s)

    def processes(self, uuid: str) -> tuple[ComputeProcess, ...]:
        """Tenants of the GPU."""
        with self._node.called(uuid) as model:
            return _reachable(model, uuid).processes()

    def links(self) -> Mapping[tuple[str, str], Link]:
        """Connections, made anew only when other GPUs answer."""
        with self._node.called() as model:
            answering = frozenset(uuid for uuid, gpu in model.gpus.items() if not gpu.lost)
            if self._links is None or self._links[0] != answering:
                self._links = (answering, model.links())
        return self._links[1]

    def set_time_slice(self, uuid: str, level: TimeSliceLevel) -> None:
        """Slices of another length; NVIDIA publishes no durations, so those of levels are assumed.

        Tenants that run feel it at once, although a real driver tells only those that come later.
        """
        with self._node.called(uuid) as model:
            gpu = _reachable(model, uuid)
            if gpu.identity.mig_enabled:
                raise NotSupported("a GPU in MIG mode has no time-slice level")
            if not gpu.profile.has_levels:
                raise NotSupported(f"{gpu.identity.product} has no time-slice level")
            gpu.set_time_slice(level)


def _reachable(model: SimulatedNode, uuid: str) -> SimulatedGpu:
    gpu = model.gpu(uuid)
    if gpu.lost:
        raise GpuLost(uuid)
    return gpu
