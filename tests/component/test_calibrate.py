"""The processes of a calibration: who does what when, and what becomes of one that goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hal import TimeSliceLevel
from sim.calibrate import measure as measuring
from sim.calibrate import mps
from sim.calibrate.children import ChildFailed
from sim.calibrate.edges import EdgeError
from sim.calibrate.measure import Evidence, Plan, calibration_of, measure
from sim.calibrate.processes import descendants
from sim.gpu.calibration import MeasuredMps
from tests.component import gpuedges
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu(tmp_path: Path) -> Path:
    (tmp_path / "level").write_text("default")
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = descendants()
    yield
    assert descendants() - before == set()


def measured(
    gpu: Path, *, fault: str = "", levels: bool = False, others: int = 0, for_s: float = 60
) -> Evidence:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FAKE_GPU": str(gpu),
        "FAKE_FAULT": fault,
        "FAKE_OTHERS": str(others),
    }
    plan = Plan(
        time.monotonic() + for_s,
        levels=levels,
        restored=TimeSliceLevel.MEDIUM,
        cuda=gpuedges.CUDA,
        driver=gpuedges.DRIVER,
        environment=environment,
    )
    return measure(plan)


def levels_of(gpu: Path) -> list[str]:
    path = gpu / "levels"
    return path.read_text().split() if path.exists() else []


def test_two_processes_run_at_once_with_one_warp_and_with_the_gpu_full(gpu: Path) -> None:
    found = calibration_of(measured(gpu, others=2))
    assert found.slice_us.default.median == pytest.approx(2000, rel=0.01)
    assert found.switch_us.low.median == pytest.approx(gpuedges.LOW_US, abs=2)
    assert found.switch_us.full.median == pytest.approx(gpuedges.FULL_US, abs=2)
    assert found.context_mib == 480
    assert (found.model, str(found.measured_on)) == ("l4", "2026-11-30")
    assert found.notes == ("2 other processes had a context on the GPU while it was measured",)
    assert levels_of(gpu) == []


@pytest.mark.slow
def test_each_level_has_contexts_of_its_own_and_the_level_is_put_back(gpu: Path) -> None:
    found = calibration_of(measured(gpu, levels=True))
    slices = found.slice_us
    assert slices.short is not None
    assert slices.medium is not None
    assert slices.long is not None
    assert slices.default.median == pytest.approx(2000, rel=0.01)
    assert slices.short.median == pytest.approx(1200, rel=0.01)
    assert slices.medium.median == pytest.approx(5000, rel=0.01)
    assert slices.long.median == pytest.approx(24_000, rel=0.01)
    assert levels_of(gpu) == ["default", "short", "medium", "long", "medium"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("look:driver:hang", "the driver's process did not come back from looking for the GPU"),
        ("open:second:hang", "the second process did not come back from making a context"),
        ("stamp:first:hang", "the first process did not come back from its kernel"),
        ("stamp:second:hang", "the second process did not come back from its kernel"),
    ],
)
@pytest.mark.slow
def test_one_that_hangs_is_killed_and_named(
    gpu: Path, fault: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"look": "LOOK_S", "open": "OPEN_S", "stamp": "CALL_S"}[fault.partition(":")[0]]
    monkeypatch.setattr(measuring, name, 3.0)
    with pytest.raises(ChildFailed, match=said):
        measured(gpu, fault=fault)


@pytest.mark.slow
def test_the_whole_time_is_over_for_all_steps_together(gpu: Path) -> None:
    began_s = time.monotonic()
    with pytest.raises(ChildFailed, match="did not come back"):
        measured(gpu, fault="stamp:second:hang", for_s=3)
    assert time.monotonic() - began_s < 15


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("open:first:die", ChildFailed, "the first process ended with 7\n  .*CUDA is unhappy"),
        ("stamp:second:die", ChildFailed, "the second process ended with 7"),
        ("free-bytes:first:raise", ChildFailed, "(?s)the first process ended with 1.*a bug"),
        ("open:second:refuse", EdgeError, r"CUDA_ERROR_UNKNOWN \(999\)"),
        ("look:driver:refuse", EdgeError, r"CUDA_ERROR_UNKNOWN \(999\)"),
    ],
)
@pytest.mark.slow
def test_one_that_fails_ends_the_measurement(
    gpu: Path, fault: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        measured(gpu, fault=fault)


def test_the_level_is_put_back_whatever_goes_wrong(gpu: Path) -> None:
    with pytest.raises(ChildFailed):
        measured(gpu, fault="open:first:die", levels=True)
    assert levels_of(gpu) == ["default", "medium"]


ALONE = """
import os, sys, time
from sim.calibrate.measure import Plan, measure
from tests.component import gpuedges
plan = Plan(time.monotonic() + 60, cuda=gpuedges.CUDA, driver=gpuedges.DRIVER)
measure(plan)
"""


@pytest.mark.slow
def test_when_it_is_killed_its_processes_are_killed_as_well(gpu: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FAKE_GPU": str(gpu),
        "FAKE_FAULT": "stamp:second:hang",
    }
    process = subprocess.Popen([sys.executable, "-c", ALONE], env=environment)
    try:
        eventually(lambda: len(list(gpu.glob("context-*"))) == 2)
        pids = [int(path.name.partition("-")[2]) for path in gpu.glob("context-*")]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    eventually(lambda: not any(Path("/proc", str(pid)).exists() for pid in pids))


SERVER = """#!/bin/sh
if [ "$1" = -f ]; then
    setsid sleep 300 &
    echo $! > "$FAKE_GPU/server"
    touch "$CUDA_MPS_PIPE_DIRECTORY/control"
    exec sleep 300
fi
"""
WORK = """#!/bin/sh
echo "$CUDA_MPS_PIPE_DIRECTORY $CUDA_VISIBLE_DEVICES" >> "$FAKE_GPU/runs"
if [ "$(wc -l < "$FAKE_GPU/runs")" = 1 ]; then sleep 1; else sleep 1.5; fi
exit ${FAKE_STATUS:-0}
"""


@pytest.fixture
def programs(gpu: Path) -> dict[str, str]:
    """An environment with an MPS server whose daemon has a session of its own, and a command."""
    for name, text in ((mps.SERVER, SERVER), ("work", WORK)):
        (gpu / name).write_text(text)
        (gpu / name).chmod(0o755)
    return {"PATH": f"{gpu}:{os.environ['PATH']}", "FAKE_GPU": str(gpu)}


SHARE = """
import os, sys, time
from sim.calibrate import mps
from sim.calibrate.processes import adopt_orphans
adopt_orphans()
mps.LEAST_S = 0.5
print(mps.mps_share(sys.argv[1], "GPU-a", time.monotonic() + 30, os.environ).model_dump_json())
"""


@pytest.mark.slow
def test_the_mps_share_is_by_how_much_two_take_longer_than_one(
    gpu: Path, programs: dict[str, str]
) -> None:
    command = f"{gpu}/work --batch 8"
    done = subprocess.run(
        [sys.executable, "-c", SHARE, command],
        env={**os.environ, **programs, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
        timeout=60,
    )
    found = MeasuredMps.model_validate_json(done.stdout)
    assert found.share == pytest.approx(0.5, abs=0.3)
    assert found.command == command
    runs = (gpu / "runs").read_text().splitlines()
    assert len(runs) == 3
    assert len(set(runs)) == 1
    assert runs[0].endswith(" GPU-a")
    assert not Path("/proc", (gpu / "server").read_text().strip()).exists()


@pytest.fixture
def plain_server(gpu: Path, programs: dict[str, str]) -> dict[str, str]:
    """One without a daemon of its own, which only a process that adopts orphans could end."""
    (gpu / mps.SERVER).write_text(SERVER.replace("setsid sleep 300 &", ""))
    return programs


@pytest.mark.slow
def test_a_command_that_says_nothing_about_mps(gpu: Path, plain_server: dict[str, str]) -> None:
    until_s, programs = time.monotonic() + 60, plain_server
    with pytest.raises(EdgeError, match="give one that works for 2 s at least"):
        mps.mps_share(f"{gpu}/work", "GPU-a", until_s, programs)
    with pytest.raises(EdgeError, match="ended with 3"):
        mps.mps_share(f"{gpu}/work", "GPU-a", until_s, {**programs, "FAKE_STATUS": "3"})
    with pytest.raises(EdgeError, match="cannot be run"):
        mps.mps_share(f"{gpu}/nothing", "GPU-a", until_s, programs)
    with pytest.raises(ChildFailed, match="not done in time"):
        mps.mps_share("sleep 30", "GPU-a", time.monotonic() + 1.5, programs)
    with pytest.raises(EdgeError, match="nvidia-cuda-mps-control was not found"):
        mps.mps_share("true", "GPU-a", until_s, {"PATH": "/nonexistent"})
