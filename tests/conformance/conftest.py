"""The backends that the suite runs against: one factory each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hal import DriverNotFound, DriverUnavailable
from hal.nvml import NvmlBackend
from sim.backend import SimBackend
from sim.node import SimulatedNode
from sim.realtime import RealTimeNode
from sim.scenario import GpuGroup, Scenario, Tenant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hal import Backend
    from sim.faults import GpuHappening


@dataclass(frozen=True, slots=True)
class Subject:
    """A backend under test, opened.

    `befall` lets something befall the GPU of an index; None where nothing can be made to happen.
    """

    backend: Backend
    befall: Callable[[int, GpuHappening], None] | None = None

    @property
    def uuids(self) -> tuple[str, ...]:
        """UUIDs by index."""
        return tuple(gpu.uuid for gpu in self.backend.gpus())

    def let(self, gpu: int, what: GpuHappening) -> None:
        """Let something befall a GPU, or skip the test where that cannot be done."""
        if self.befall is None:
            pytest.skip("nothing can be made to happen to real GPUs")
        self.befall(gpu, what)


SIMULATED = (
    ("h100-sxm5-80gb", 1),
    ("h100-sxm5-80gb", 8),
    ("a100-sxm4-40gb", 16),
    ("rtx3090", 1),
)

BACKENDS = [
    *(pytest.param((model, count), id=f"sim-{count}x-{model}") for model, count in SIMULATED),
    pytest.param("nvml", id="nvml", marks=pytest.mark.hardware),
]


@pytest.fixture(params=BACKENDS)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Each backend in turn."""
    if request.param == "nvml":
        yield from _nvml()
    else:
        yield from _simulated(*request.param)


def _simulated(model: str, count: int) -> Iterator[Subject]:
    scenario = Scenario(
        gpus=[GpuGroup(model=model, count=count)],
        tenants=[
            Tenant(name="trainer", gpu=0, utilization=0.8, memory_gib=7.5),
            Tenant(name="notebook", gpu=0, utilization=0.7, memory_gib=2.0),
            Tenant(name="server", gpu=count - 1, utilization=0.1, memory_gib=1.0),
        ],
    )
    node = RealTimeNode(SimulatedNode(scenario))
    backend = SimBackend(node)

    def befall(gpu: int, what: GpuHappening) -> None:
        with node.present() as model_node:
            model_node.befall(model_node.find(str(gpu)), what)

    backend.open()
    try:
        yield Subject(backend, befall)
    finally:
        backend.close()
        node.stop()


def _nvml() -> Iterator[Subject]:
    backend = NvmlBackend(Path("/"))
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
