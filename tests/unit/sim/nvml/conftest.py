"""A node behind the library, and the real Python binding of NVML, in one process."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pynvml
import pytest
import yaml

from sim.gpu.faults import FAULT, NodeFault
from sim.node.node import SimulatedNode
from sim.node.realtime import RealTimeNode
from sim.node.scenario import parse_scenario
from sim.nvml.library import CannotBuild, built_library
from sim.nvml.server import NvmlServer
from tests.conformance.library import bound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCENARIO = """
gpus:
  - {model: h100-sxm5-80gb, count: 2}
  - {model: h100-sxm5-80gb, mig: [3g.40gb, 2g.20gb, 1g.10gb]}
  - {model: rtx3090}
  - {model: t4}
tenants:
  - {name: trainer, gpu: 0, utilization: 0.5, memory_gib: 8}
  - {name: notebook, gpu: 0, utilization: 0.25, memory_gib: 2}
  - name: on-mig
    gpu: 2
    mig: 1
    workload: {kind: training, step_ms: 20}
    memory: {start_gib: 4}
"""


@dataclass(frozen=True, slots=True)
class World:
    """A live node, and the socket at which NVML is answered."""

    node: RealTimeNode
    server: NvmlServer
    socket: Path

    def let(self, what: str, gpu: int | None = None) -> None:
        """Let something, spelt as in a scenario, happen now."""
        fault = FAULT.validate_python(yaml.safe_load(what))
        with self.node.update() as model:
            if isinstance(fault, NodeFault):
                model.inject_node(fault)
            else:
                model.inject(model.present[gpu or 0], fault)


@pytest.fixture(scope="session")
def library() -> Path:
    """The library's file."""
    try:
        return built_library()
    except CannotBuild as error:
        pytest.skip(str(error))


@pytest.fixture
def world() -> Iterator[World]:
    """A node with GPUs of four kinds; nobody has called it yet."""
    node = RealTimeNode(SimulatedNode(parse_scenario(SCENARIO, "test")))
    node.start()
    with tempfile.TemporaryDirectory(prefix="gp") as folder:
        socket = Path(folder) / "nvml.sock"
        server = NvmlServer(node, socket)
        try:
            yield World(node, server, socket)
        finally:
            server.close()
            node.stop()


@pytest.fixture
def nvml(world: World, library: Path) -> Iterator[World]:
    """The same, and `pynvml` is initialised on it."""
    with bound(library, world.socket):
        pynvml.nvmlInit()
        yield world


def code_of(call: Callable[[], object]) -> int:
    """What a call returns: 0 if it succeeds."""
    try:
        call()
    except pynvml.NVMLError as error:
        return int(error.value)
    return 0
