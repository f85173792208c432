"""MIG devices that another program makes through NVML while the plugin runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pynvml
import pytest

from sim.nvml.library import CannotBuild, built_library
from tests.component.nvmlhardware import NvmlHardware
from tests.component.running import PluginProcess, settings_for
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sim.kubelet import Kubelet

MODEL = "h100-sxm5-80gb"


@pytest.fixture
def hardware(tmp_path: Path) -> Iterator[NvmlHardware]:
    """Two GPUs, the second in MIG mode without instances."""
    try:
        library = built_library()
    except CannotBuild as error:
        pytest.skip(str(error))
    made = NvmlHardware(tmp_path, library, gpus=[{"model": MODEL}, {"model": MODEL, "mig": []}])
    yield made
    made.stop()


def test_the_rescan_sees_instances_that_another_program_makes_and_destroys(
    kubelet: Kubelet, kubelet_dir: Path, hardware: NvmlHardware
) -> None:
    flags = {"--mig-strategy": "mixed", "--health-probe-interval": "40ms"}
    with PluginProcess(settings_for(kubelet_dir, flags), hardware.backend):

        def count(name: str) -> int:
            return kubelet.view().allocatable(f"nvidia.com/{name}")

        eventually(lambda: count("gpu") == 10)
        gpu = pynvml.nvmlDeviceGetHandleByIndex(1)
        instances = [pynvml.nvmlDeviceCreateGpuInstance(gpu, profile) for profile in (9, 14)]
        compute = [
            pynvml.nvmlGpuInstanceCreateComputeInstance(instance, profile)
            for instance, profile in zip(instances, (2, 1), strict=True)
        ]
        eventually(
            lambda: [count("mig-3g.40gb"), count("mig-2g.20gb")] == [1, 1],
        )
        pynvml.nvmlComputeInstanceDestroy(compute[0])
        pynvml.nvmlGpuInstanceDestroy(instances[0])
        eventually(lambda: count("mig-3g.40gb") == 0)
        assert count("mig-2g.20gb") == 1
