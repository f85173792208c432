"""The GPUs of a node as a backend reads them, in both clocks.

Mostly that is what the model says. While calls of NVML return something else, the NVML backend's
own code reads the node instead, so that such calls mean the same to every reader.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hal import GpuLost, GpuState
from hal.nvml.api import Code, NvmlError
from hal.nvml.failures import hal_error, open_error
from hal.nvml.inventory import Inventory
from hal.nvml.kernelfiles import ProcGpu, sysfs_bus_id
from hal.nvml.readings import (
    Readiness,
    ShutdownLimits,
    list_processes,
    read_links,
    read_probe,
    read_telemetry,
)
from hal.nvml.values import Values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hal import ComputeProcess, Gpu, Link, Probe, Telemetry
    from sim.gpu.gpu import SimulatedGpu
    from sim.node.node import SimulatedNode
    from sim.nvml.inprocess import InProcessNvml


class NodeReader:
    """Reads a node that its callers hold still; raises `HalError` as `hal.Backend`."""

    def __init__(self, node: SimulatedNode) -> None:
        self._node = node
        self._indices: dict[int, int] = {}
        """Indices of this connection, by the GPU's place in the node."""
        self._listed: tuple[Gpu, ...] = ()
        self._misread: _Misread | None = None

    def connect(self) -> None:
        """Begin another connection, in which GPUs keep their indices; raises `HalError`."""
        answer = self._node.driver.returned.to("nvmlInit_v2", self._node.now_s)
        if answer is not None and answer.code is not Code.SUCCESS:
            raise open_error(NvmlError(answer.code, answer.code.name))
        plugged = [place for place, gpu in enumerate(self._node.present) if gpu.plugged]
        self._indices = {place: index for index, place in enumerate(plugged)}
        self._misread = None
        if (misread := self._misreading()) is not None:
            misread.connect()

    def driver_version(self) -> str:
        misread = self._misreading()
        return self._node.scenario.driver_version if misread is None else misread.driver_version()

    def cuda_version(self) -> tuple[int, int] | None:
        misread = self._misreading()
        return self._node.scenario.cuda_version if misread is None else misread.cuda_version()

    def gpus(self) -> tuple[Gpu, ...]:
        misread = self._misreading()
        if misread is not None:
            self._listed = misread.gpus()
            return self._listed
        seen = {gpu.uuid for gpu in self._listed}
        found: list[Gpu] = []
        for gpu in self._node.listed():
            index = self._index(gpu.index)
            if index is not None:
                found.append(gpu if index == gpu.index else replace(gpu, index=index))
            elif gpu.uuid in seen:
                found.append(gpu)
        self._listed = tuple(sorted(found, key=lambda gpu: (gpu.index, gpu.state is GpuState.LOST)))
        return self._listed

    def probe(self, uuid: str) -> Probe:
        gpu, misread = self._node.gpu(uuid), self._misreading()
        if misread is not None:
            return misread.probe(gpu)
        probe = gpu.probe()
        if self._node.scenario.confidential_compute and probe.reachable:
            return replace(probe, confidential_ready=self._node.driver.confidential_ready)
        return probe

    def telemetry(self, uuid: str) -> Telemetry:
        gpu, misread = self._reachable(uuid), self._misreading()
        return gpu.telemetry(self._node.now_s) if misread is None else misread.telemetry(gpu)

    def processes(self, uuid: str) -> tuple[ComputeProcess, ...]:
        gpu, misread = self._reachable(uuid), self._misreading()
        return gpu.processes() if misread is None else misread.processes(gpu)

    def links(self) -> Mapping[tuple[str, str], Link]:
        misread = self._misreading()
        return self._node.links() if misread is None else misread.links()

    def _index(self, place: int) -> int | None:
        """That of this connection; a GPU that was plugged during it is its last."""
        if place not in self._indices:
            if self._indices and not self._node.present[place].plugged:
                return None
            self._indices[place] = len(self._indices)
        return self._indices[place]

    def _reachable(self, uuid: str) -> SimulatedGpu:
        gpu = self._node.gpu(uuid)
        if gpu.lost:
            raise GpuLost(uuid)
        return gpu

    def _misreading(self) -> _Misread | None:
        if not self._node.misread:
            self._misread = None
        elif self._misread is None:
            self._misread = _Misread(self._node, self._listed)
        return self._misread


class _Misread:
    """The node by way of the NVML backend's code, from the GPUs that were listed before."""

    def __init__(self, node: SimulatedNode, listed: tuple[Gpu, ...]) -> None:
        # Imported late: it brings the whole Python binding of NVML with it.
        from sim.nvml.inprocess import InProcessNvml

        self._node = node
        self._api: InProcessNvml = InProcessNvml(node)
        self._inventory = Inventory(_ModelKernel(node), lambda: node.now_s)
        self._limits = ShutdownLimits(self._api)
        self._readiness = Readiness(self._api)
        handles = {
            gpu.uuid: self._api.handle_of(gpu.uuid) for gpu in listed if gpu.state is GpuState.OK
        }
        self._inventory.learn(listed, handles)

    def connect(self) -> None:
        self._api.init()
        self._inventory.connected()

    def driver_version(self) -> str:
        return Values().read("", self._api.driver_version)

    def cuda_version(self) -> tuple[int, int] | None:
        found = Values().read(None, self._api.cuda_version)
        return None if found is None else (found // 1000, found % 1000 // 10)

    def gpus(self) -> tuple[Gpu, ...]:
        return self._inventory.scan(self._api).gpus

    def probe(self, gpu: SimulatedGpu) -> Probe:
        uuid = gpu.identity.uuid
        self._inventory.identify(self._api, uuid)
        return read_probe(
            self._api,
            lambda: self._inventory.handle(self._api, uuid),
            gpu.probe().epoch,
            self._limits,
            self._readiness,
        )

    def telemetry(self, gpu: SimulatedGpu) -> Telemetry:
        uuid = gpu.identity.uuid
        try:
            return read_telemetry(self._api, self._inventory.handle(self._api, uuid))
        except NvmlError as error:
            raise hal_error(error, "Reading the telemetry", uuid) from error

    def processes(self, gpu: SimulatedGpu) -> tuple[ComputeProcess, ...]:
        return list_processes(self._api, self._inventory, gpu.identity.uuid)

    def links(self) -> Mapping[tuple[str, str], Link]:
        try:
            return read_links(self._api, self._inventory.scan(self._api), self._inventory.calls)
        except NvmlError as error:
            raise hal_error(error, "Reading the links") from error


class _ModelKernel:
    """The kernel's facts of a simulated node; see `hal.nvml.inventory.Kernel`."""

    def __init__(self, node: SimulatedNode) -> None:
        self._node = node

    def numa_node(self, bus_id: str, warn: Callable[[str], None]) -> int | None:
        for gpu in self._node.present:
            if gpu.identity.pci_bus_id == bus_id:
                return gpu.identity.numa_node
        warn(f"no GPU of the simulated node has the PCI address {bus_id}")
        return None

    def pci_class(self, bus_id: str) -> int | None:
        gpus = (gpu.identity for gpu in self._node.present)
        return next((gpu.pci_class for gpu in gpus if gpu.pci_bus_id == bus_id), None)

    def mig_minors(self) -> Mapping[tuple[int, int, int | None], int]:
        minors: dict[tuple[int, int, int | None], int] = {}
        for gpu in self._node.present:
            if gpu.identity.minor is None:
                continue
            for mig in gpu.identity.mig_devices:
                gi, ci = (int(path.rpartition("cap")[2]) for path in mig.device_nodes[1:])
                minors[gpu.identity.minor, mig.gpu_instance, None] = gi
                minors[gpu.identity.minor, mig.gpu_instance, mig.compute_instance] = ci
        return minors

    def gpus(self) -> tuple[ProcGpu | None, ...]:
        return tuple(
            ProcGpu(one.uuid, one.product, sysfs_bus_id(one.pci_bus_id), one.minor)
            for one in (gpu.identity for gpu in self._node.present)
        )
