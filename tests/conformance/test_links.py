"""Links between the GPUs of a simulated node: unique addresses, and both backends show the same."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal import Link, LinkKind
from hal.nvml import NvmlBackend
from hal.nvml.binding import pynvml_api
from sim.gpu.profiles import model_names
from sim.node.node import SimulatedNode
from sim.node.realtime import RealTimeNode, SimBackend
from sim.node.scenario import Scenario, ScenarioError, load_scenario, parse_scenario, scenario_names
from sim.nvml.server import NvmlServer
from tests.conformance.library import bound

if TYPE_CHECKING:
    from collections.abc import Mapping

    Links = Mapping[tuple[str, str], Link]

BUS_IDS = [f"0000{domain}:{bus:02x}:00.0" for domain in ("0000", "0001") for bus in range(1, 16)]


@st.composite
def recordings(draw: st.DrawFn) -> Scenario:
    """Up to six recorded GPUs, some with an address, and links between some pairs of them."""
    count = draw(st.integers(1, 6))
    bus_ids = draw(st.permutations([*BUS_IDS, *[None] * count]))
    gpus: list[dict[str, Any]] = [
        {"model": draw(st.sampled_from(model_names())), "recorded": {"pci_bus_id": bus_id}}
        for bus_id in bus_ids[:count]
    ]
    gpus.append({"model": draw(st.sampled_from(model_names())), "count": draw(st.integers(1, 4))})
    indices = st.integers(0, count - 1)
    links = st.fixed_dictionaries(
        {
            "gpus": st.tuples(indices, indices),
            "path": st.sampled_from([kind.value for kind in LinkKind]),
            "nvlinks": st.integers(0, 4),
        }
    )
    return Scenario.model_validate({"gpus": gpus, "links": draw(st.lists(links, max_size=8))})


def _read(scenario: Scenario, library: Path) -> tuple[list[str], list[str], list[Links]]:
    """Bus ids of the GPUs, those of the switches, and the links as both backends show them."""
    node = RealTimeNode(SimulatedNode(scenario))
    simulated = SimBackend(node)
    simulated.open()
    with tempfile.TemporaryDirectory(prefix="gp") as name:
        socket = Path(name) / "nvml.sock"
        with closing(NvmlServer(node, socket)), bound(library, socket):
            real = NvmlBackend(api=pynvml_api(), sysfs_root=Path(name), procfs_root=Path(name))
            real.open()
            try:
                links = [simulated.links(), real.links()]
                gpus, switches = _addresses()
            finally:
                real.close()
                node.stop()
    return gpus, switches, links


def _addresses() -> tuple[list[str], list[str]]:
    """Bus ids of the GPUs, and of the switches that their NVLinks lead to."""
    gpus, switches = [], set()
    for index in range(pynvml.nvmlDeviceGetCount()):
        gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
        gpus.append(pynvml.nvmlDeviceGetPciInfo(gpu).busId)
        for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
            try:
                if not pynvml.nvmlDeviceGetNvLinkState(gpu, link):
                    continue
                if pynvml.nvmlDeviceGetNvLinkRemoteDeviceType(gpu, link) == 2:
                    switches.add(pynvml.nvmlDeviceGetNvLinkRemotePciInfo(gpu, link).busId)
            except pynvml.NVMLError_NotSupported:
                break
    return gpus, sorted(switches)


def _check(scenario: Scenario, library: Path) -> None:
    gpus, switches, (simulated, real) = _read(scenario, library)
    everything = [*gpus, *switches]
    assert len(set(everything)) == len(everything)
    assert simulated == real
    for (one, other), link in real.items():
        assert real[other, one] == link


@pytest.mark.parametrize("model", model_names())
@pytest.mark.parametrize("count", [2, 8])
def test_every_model(model: str, count: int, nvml_library: Path) -> None:
    _check(Scenario.model_validate({"gpus": [{"model": model, "count": count}]}), nvml_library)


@pytest.mark.parametrize("name", scenario_names())
def test_every_shipped_scenario(name: str, nvml_library: Path) -> None:
    _check(load_scenario(name), nvml_library)


@settings(max_examples=20, deadline=None)
@given(scenario=recordings())
def test_every_recording(scenario: Scenario, nvml_library: Path) -> None:
    _check(scenario, nvml_library)


def test_a_gpu_has_36_nvlinks_at_most() -> None:
    links = [f"{{gpus: [0, {other}], path: host-bridge, nvlinks: 18}}" for other in (1, 2, 3)]
    text = f"gpus: [{{model: t4, count: 4}}]\nlinks: [{', '.join(links)}]"
    with pytest.raises(ScenarioError, match=r"GPU 0 has 54 NVLinks .* at most 36"):
        parse_scenario(text, "test")
