"""What looks at well GPUs ask of the driver, and that whatever changes is seen all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hal.nvml.api import Code, EccKind, EventType, Field, RemappedRows
from hal.nvml.backend import NvmlBackend
from hal.types import GpuState, Probe, RecoveryAction
from tests.unit.hal.fake_nvml import FakeGpu, FakeMig, FakeNvml, event

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hal.types import Gpu

PERIOD_S = 5.0
SURVEY_S = 60.0
LIMIT_C = 92


class Node:
    """A node whose GPUs are looked at every `PERIOD_S`."""

    def __init__(self, folder: Path, count: int = 8) -> None:
        self.gpus = [
            FakeGpu(f"GPU-{n}", minor=n, shutdown_temperature=LIMIT_C) for n in range(count)
        ]
        self.nvml = FakeNvml(*self.gpus)
        self.proc = folder
        self._now_s = 1000.0
        self.backend = NvmlBackend(
            api=self.nvml,
            rescan_s=1e9,
            survey_s=SURVEY_S,
            procfs_root=folder,
            clock=lambda: self._now_s,
        )
        self.backend.open()
        self.backend.links()

    def look(self) -> tuple[dict[str, Gpu], dict[str, Probe]]:
        """As the daemon does; returns the GPUs and their probes by UUID."""
        self._now_s += PERIOD_S
        self.backend.wait_events(0)
        gpus = self.backend.gpus()
        return {gpu.uuid: gpu for gpu in gpus}, {
            gpu.uuid: self.backend.probe(gpu.uuid) for gpu in gpus
        }

    def calls_of_looks(self, count: int) -> int:
        before = self._calls()
        for _ in range(count):
            self.look()
        return self._calls() - before

    def _calls(self) -> int:
        """Without waits for events; the stand-in counts some calls twice."""
        calls = self.nvml.calls
        twice = sum(calls[name] for name in ("handle_by_index", "uuid", "memory"))
        return calls.total() - calls["event_wait"] - twice // 2


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = Node(tmp_path)
    node.look()
    node.look()
    return node


def test_eight_well_gpus_take_less_than_300_calls_a_minute(node: Node) -> None:
    assert node.calls_of_looks(1) == 1 + 2 * 8
    assert node.calls_of_looks(12) < 290


def test_a_gpu_for_a_display_alone_is_no_reason_to_read_everything(tmp_path: Path) -> None:
    node = Node(tmp_path, 2)
    node.nvml.gpus.append(FakeGpu("GPU-display", name="NVIDIA DGX Display"))
    node.look()
    gpus, _ = node.look()
    assert list(gpus) == ["GPU-0", "GPU-1"]
    assert node.calls_of_looks(1) == 1 + 2 * 2


def _at_once() -> dict[str, tuple[Callable[[FakeGpu], None], Callable[[Gpu, Probe], bool]]]:
    """Changes without an event, and what the next look shows."""
    return {
        "lost": (
            lambda gpu: setattr(gpu, "gone", Code.GPU_IS_LOST),
            lambda _gpu, probe: not probe.reachable,
        ),
        "unreachable": (
            lambda gpu: gpu.failing.update(
                dict.fromkeys(
                    (
                        "memory",
                        "utilization_percent",
                        "temperature_c",
                        "clock_mhz",
                        "power_mw",
                        "volatile_ecc",
                        "processes",
                    ),
                    Code.UNKNOWN,
                )
            ),
            lambda _gpu, probe: not probe.reachable,
        ),
        "action": (
            lambda gpu: gpu.fields.update({Field.RECOVERY_ACTION: 1}),
            lambda _gpu, probe: probe.recovery_action is RecoveryAction.RESET,
        ),
        "temperature": (
            lambda gpu: setattr(gpu, "temperature", LIMIT_C),
            lambda _gpu, probe: probe.thermal_shutdown,
        ),
    }


def _in_time() -> dict[str, tuple[Callable[[FakeGpu], None], Callable[[Gpu, Probe], bool]]]:
    """Changes that are seen by a survey, or after an event."""
    return {
        "remap": (
            lambda gpu: setattr(gpu, "rows", RemappedRows(pending=False, failure=True)),
            lambda _gpu, probe: probe.row_remap_failed,
        ),
        "ecc": (
            lambda gpu: gpu.ecc.update({EccKind.UNCORRECTED: 3}),
            lambda _gpu, probe: probe.uncorrectable_ecc == 3,
        ),
        "mode": (
            lambda gpu: setattr(gpu, "compute_mode", 2),
            lambda gpu, _probe: (
                gpu.compute_mode is not None and gpu.compute_mode.value != "default"
            ),
        ),
    }


@pytest.mark.parametrize("what", _at_once())
def test_what_comes_without_an_event_is_seen_by_the_next_look(node: Node, what: str) -> None:
    change, seen = _at_once()[what]
    change(node.gpus[3])
    gpus, probes = node.look()
    assert seen(gpus["GPU-3"], probes["GPU-3"])
    assert probes["GPU-2"].reachable


@pytest.mark.parametrize("what", _in_time())
def test_the_rest_is_seen_within_a_minute(node: Node, what: str) -> None:
    change, seen = _in_time()[what]
    change(node.gpus[3])
    for _ in range(round(SURVEY_S / PERIOD_S)):
        node.look()
    gpus, probes = node.look()
    assert seen(gpus["GPU-3"], probes["GPU-3"])


@pytest.mark.parametrize("what", _in_time())
def test_after_an_event_everything_is_seen_by_the_next_look(node: Node, what: str) -> None:
    change, seen = _in_time()[what]
    change(node.gpus[3])
    node.nvml.push(event(node.gpus[0], EventType.XID, 31))
    gpus, probes = node.look()
    assert seen(gpus["GPU-3"], probes["GPU-3"])


def test_another_number_of_gpus_is_seen_by_the_next_look(node: Node) -> None:
    node.nvml.gpus.append(FakeGpu("GPU-8", minor=8))
    assert "GPU-8" in node.look()[0]
    del node.nvml.gpus[0]
    gpus, _ = node.look()
    assert gpus["GPU-0"].state is GpuState.LOST


def test_mig_devices_are_seen_by_the_next_look_where_the_kernel_shows_them(node: Node) -> None:
    node.gpus[0].mig_mode = True
    node.gpus[0].migs[0] = FakeMig("MIG-a", 1, 0, name="NVIDIA H100 MIG 1g.10gb")
    assert not node.look()[0]["GPU-0"].mig_devices
    instance = node.proc / "driver/nvidia/capabilities/gpu0/mig/gi1"
    instance.mkdir(parents=True)
    assert [mig.uuid for mig in node.look()[0]["GPU-0"].mig_devices] == ["MIG-a"]


def test_a_gpu_that_is_not_well_is_read_as_a_whole_at_each_look(node: Node) -> None:
    node.gpus[3].fields[Field.RECOVERY_ACTION] = 1
    node.look()
    assert node.calls_of_looks(1) > 60
    node.gpus[3].fields[Field.RECOVERY_ACTION] = 0
    assert node.calls_of_looks(round(SURVEY_S / PERIOD_S) + 2) > 12 * 60
    assert node.calls_of_looks(1) == 1 + 2 * 8, "it has been well for a minute"
