"""The backends that the suite runs against: one factory each."""

from __future__ import annotations

import os
import tempfile
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gpuplugin.cli.backends import make_backend
from gpuplugin.config.load import load_settings
from hal import DriverNotFound, DriverUnavailable
from hal.nvml import NvmlBackend
from hal.nvml.binding import pynvml_api
from sim.node.node import SimulatedNode
from sim.node.realtime import RealTimeNode, SimBackend
from sim.node.scenario import GpuGroup, Scenario
from sim.node.serve import kernel_files
from sim.nvml.library import CannotBuild, built_library
from sim.nvml.server import NvmlServer
from tests.conformance.library import bound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hal import Backend
    from sim.gpu.faults import GpuFault, NodeFault


@dataclass(frozen=True, slots=True)
class Subject:
    """A backend under test, opened.

    `inject` injects a fault into the GPU of an index; None where nothing can be made to happen.
    """

    backend: Backend
    inject: Callable[[int, GpuFault], None] | None = None
    node: RealTimeNode | None = None

    @property
    def uuids(self) -> tuple[str, ...]:
        """UUIDs by index."""
        return tuple(gpu.uuid for gpu in self.backend.gpus())

    def let(self, gpu: int, what: GpuFault) -> None:
        """Inject a fault into a GPU, or skip the test where that cannot be done."""
        if self.inject is None:
            pytest.skip("nothing can be made to happen to real GPUs")
        self.inject(gpu, what)

    def let_node(self, what: NodeFault) -> None:
        """Inject a fault into the node, or skip the test where that cannot be done."""
        if self.node is None:
            pytest.skip("nothing can be made to happen to a real driver")
        with self.node.update() as model:
            model.inject_node(what)


MIG = ["3g.40gb", "2g.20gb", "1g.10gb"]
SIMULATED = {
    "1x-h100": GpuGroup(model="h100-sxm5-80gb"),
    "8x-h100": GpuGroup(model="h100-sxm5-80gb", count=8),
    "16x-a100": GpuGroup(model="a100-sxm4-40gb", count=16),
    "2x-h100-mig": GpuGroup(model="h100-sxm5-80gb", count=2, mig=MIG),
    "1x-rtx3090": GpuGroup(model="rtx3090"),
}

BACKENDS = [
    *(pytest.param(("sim", name), id=f"sim-{name}") for name in SIMULATED),
    *(pytest.param(("library", name), id=f"nvml-{name}") for name in SIMULATED),
    pytest.param(("hardware", ""), id="nvml-hardware", marks=pytest.mark.hardware),
]


@pytest.fixture(params=BACKENDS)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Each backend in turn."""
    kind, name = request.param
    if kind == "hardware":
        yield from _hardware()
    elif kind == "sim":
        with simulated(SIMULATED[name]) as simulated_one:
            yield simulated_one
    else:
        library = request.getfixturevalue("nvml_library")
        with (
            tempfile.TemporaryDirectory(prefix="gp") as folder,
            over_library(SIMULATED[name], library, Path(folder)) as over_one,
        ):
            yield over_one


@pytest.fixture(scope="session")
def nvml_library() -> Path:
    """The simulated libnvidia-ml.so.1."""
    try:
        return built_library()
    except CannotBuild as error:
        pytest.skip(str(error))


def _node(group: GpuGroup) -> RealTimeNode:
    """Three processes on the first and last GPU; with MIG, one on each device of the last."""
    last = group.count - 1
    working = {"workload": {"kind": "training", "step_ms": 20}, "memory": {"start_gib": 1}}
    scenario = Scenario.model_validate(
        {
            "gpus": [group],
            "tenants": [
                {"name": "trainer", "gpu": 0, "utilization": 0.8, "memory_gib": 7.5},
                {"name": "notebook", "gpu": 0, "utilization": 0.7, "memory_gib": 2.0},
                {"name": "server", "gpu": last, "utilization": 0.1, "memory_gib": 1.0},
                *(
                    {"name": f"on-{index}", "gpu": last, "mig": index, **working}
                    for index in range(len(group.mig or []))
                ),
            ],
        }
    )
    return RealTimeNode(SimulatedNode(scenario))


@contextmanager
def simulated(group: GpuGroup) -> Iterator[Subject]:
    """The simulated backend on a node with these GPUs."""
    node = _node(group)
    backend = SimBackend(node)
    backend.open()
    try:
        yield Subject(backend, lambda gpu, what: inject(node, gpu, what), node)
    finally:
        backend.close()
        node.stop()


@contextmanager
def over_library(group: GpuGroup, library: Path, folder: Path) -> Iterator[Subject]:
    """The NVML backend with the real binding, in the process that owns the node."""
    node = _node(group)
    node.start()
    try:
        with (
            kernel_files(node, folder / "kernel") as kernel,
            closing(NvmlServer(node, folder / "nvml.sock")),
            bound(library, folder / "nvml.sock"),
        ):
            backend = NvmlBackend(
                api=pynvml_api(), sysfs_root=kernel.sysfs, procfs_root=kernel.procfs, rescan_s=0.0
            )
            backend.open()
            try:
                yield Subject(backend, lambda gpu, what: inject(node, gpu, what), node)
            finally:
                backend.close()
    finally:
        node.stop()


def inject(node: RealTimeNode, gpu: int, what: GpuFault) -> None:
    """Inject a fault into the GPU of an index."""
    with node.update() as model:
        model.inject(model.find(str(gpu)), what)


def _hardware() -> Iterator[Subject]:
    """With the plugin's variables, which say where the driver is."""
    settings = load_settings({}, {**os.environ, "GPUPLUGIN_BACKEND": "nvml"}, None).settings
    with make_backend(settings, control=False) as backend:
        try:
            backend.open()
        except (DriverNotFound, DriverUnavailable) as error:
            pytest.skip(f"no NVIDIA driver here ({type(error).__name__})")
        try:
            if not backend.gpus():
                pytest.skip("the driver lists no GPU")
            yield Subject(backend)
        finally:
            backend.close()
