"""`make hardware` as a process: the rehearsal, and what it does when steps go wrong."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sim.nvml.library import CannotBuild, built_library
from tests.e2e import hardwaresteps, standin
from tests.e2e.conftest import eventually
from tests.e2e.served import ServedNode
from tests.e2e.test_commands import needs_no_driver
from tools.hardware import cuda

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-m", "tools.hardware")
REHEARSAL_S = 300.0
WITH_OTHER_STEPS = """
import sys
from tests.e2e import hardwaresteps as steps
from tools.hardware import __main__ as program
from tools.hardware.run import Step
program.STEPS = (
    Step(steps.driver, 20), Step(steps.crashes, 20), Step(steps.fails, 20), Step(steps.skips, 20),
    Step(steps.hangs, 3), Step(steps.works, 20),
)
sys.exit(program.main())
"""
SICK = """
gpus: [{model: t4, count: 2}]
faults:
  - {at_s: 0, gpu: 0, what: {kind: lost}}
  - {at_s: 0, gpu: 1, what: {kind: returns, calls: [nvmlDeviceGetPowerUsage], code: UNKNOWN}}
  - {at_s: 0, gpu: 1, what: {kind: returns, calls: [nvmlDeviceGetComputeRunningProcesses_v3],
                             code: NOT_SUPPORTED}}
"""


def run(
    *command: str, env: Mapping[str, str] | None = None, timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=timeout_s
    )


@pytest.fixture
def library() -> None:
    try:
        built_library()
    except CannotBuild as error:
        pytest.skip(str(error))


@pytest.fixture
def cuda_env(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "LD_LIBRARY_PATH": str(standin.built(tmp_path))}


@needs_no_driver
def test_without_a_driver_it_ends_at_once_and_says_what_to_do(tmp_path: Path) -> None:
    done = run(*PROGRAM, "--output", str(tmp_path))
    assert done.returncode == 2
    assert "libnvidia-ml.so.1 was not found" in done.stderr
    assert "make hardware HARDWARE=--simulated" in done.stderr
    assert list(tmp_path.iterdir()) == []


@needs_no_driver
@pytest.mark.slow
def test_simulated_gpus_without_the_option_are_refused(tmp_path: Path) -> None:
    with ServedNode(tmp_path / "n") as node:
        done = run(*PROGRAM, "--output", str(tmp_path / "report"), env=node.env)
    assert done.returncode == 2
    assert "is the simulated one" in done.stderr
    assert not (tmp_path / "report").exists()


@needs_no_driver
@pytest.mark.slow
@pytest.mark.timeout(REHEARSAL_S)
@pytest.mark.usefixtures("library")
def test_the_rehearsal_passes_and_its_report_says_what_it_is(tmp_path: Path) -> None:
    options = f"--simulated --idle 5 --output {tmp_path}"
    done = run(
        "make", "hardware", f"HARDWARE={options}", f"VENV={sys.prefix}", timeout_s=REHEARSAL_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {file.name for file in tmp_path.iterdir()} == {
        "simulated-report.json",
        "simulated-report.txt",
    }
    text = (tmp_path / "simulated-report.txt").read_text()
    whole = (tmp_path / "simulated-report.json").read_text()
    report = json.loads(whole)
    assert text.splitlines()[0].startswith("SIMULATED")
    assert text.splitlines()[-1].startswith("SIMULATED")
    assert report["simulated"] is True
    assert report["passed"] is True

    verdicts = {step["step"]: step["verdict"] for step in report["steps"]}
    assert verdicts.pop("load") == "skipped"
    assert verdicts.pop("calibrate") == "skipped"
    assert set(verdicts.values()) == {"ok"}
    check_figures({step["step"]: step["data"] for step in report["steps"]})
    for private in (platform.node(), str(Path.home()), str(ROOT), "/tmp/gp"):
        assert not re.search(rf"(?<![\w-]){re.escape(private)}(?![\w-])", whole), private
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}", whole)


def check_figures(data: Mapping[str, Any]) -> None:
    assert [gpu["usable"] for gpu in data["driver"]["gpus"]] == [True] * 8
    assert data["driver"]["gpus"][0]["processes"] == 1
    assert data["conformance"]["passed"] > 30
    assert data["plugin"]["capacity"] == {"nvidia.com/gpu": 80}
    assert data["plugin"]["pods"] == 80
    assert data["plugin"]["gpus_in_metrics"] == 8
    assert data["plugin"]["lists_while_nothing_happened"] == 0
    assert 0 < data["plugin"]["allocate_p50_us"] < 1e6
    assert len(data["doctor"]["checks"]) > 20
    assert "h100-sxm5-80gb" in data["record"]["scenario"]
    costs = {row["function"]: row for row in data["calls"]["functions"]}
    assert 0 < costs["nvmlDeviceGetMemoryInfo_v2"]["p50_us"] < 1e5
    assert costs["nvmlDeviceGetTemperatureThreshold"]["codes"]
    rates = {row["function"]: row["per_minute"] for row in data["idle"]["functions"]}
    assert sum(rates.values()) > 0
    assert 0 < data["idle"]["cpu_percent"] < 100
    assert data["idle"]["resident_mib"] > 10


@needs_no_driver
@pytest.mark.slow
@pytest.mark.usefixtures("library")
def test_a_step_that_goes_wrong_stops_no_other_and_leaves_no_process(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    done = run(
        *(sys.executable, "-c", WITH_OTHER_STEPS, "--simulated", "--output", str(tmp_path)),
        env={**os.environ, hardwaresteps.PIDS: str(pids)},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    report = json.loads((tmp_path / "simulated-report.json").read_text())
    assert report["passed"] is False
    steps = {step["step"]: step for step in report["steps"]}
    assert {name: step["verdict"] for name, step in steps.items()} == {
        "driver": "ok",
        "crashes": "failed",
        "fails": "failed",
        "skips": "skipped",
        "hangs": "failed",
        "works": "ok",
    }
    assert "ZeroDivisionError: this is a bug" in steps["crashes"]["data"]["problems"]
    assert steps["hangs"]["text"] == "not done after 3 s: killed"
    assert steps["skips"]["text"] == "not on this machine"
    assert steps["works"]["text"] == "in TMP/works of ~"
    assert not Path("/proc", pids.read_text().strip()).exists()
    text = (tmp_path / "simulated-report.txt").read_text()
    assert "NOT PASSED" in text
    assert "  two\n" in text


@needs_no_driver
@pytest.mark.slow
@pytest.mark.usefixtures("library")
def test_it_ends_with_all_its_processes_when_it_is_told_to(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_OTHER_STEPS, "--simulated", "--output", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, hardwaresteps.PIDS: str(pids)},
        stdout=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: pids.exists() and pids.read_text().strip(), "a step hangs")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    finally:
        process.kill()
        process.wait()
    assert not Path("/proc", pids.read_text().strip()).exists()
    assert list(tmp_path.glob("*-report.*")) == []


@needs_no_driver
def test_the_load_calls_cuda_as_its_functions_are_declared(cuda_env: dict[str, str]) -> None:
    load = (sys.executable, "-m", "tools.hardware.cuda", "0.1", "16")
    done = run(*load, env=cuda_env)
    assert done.returncode == 0, done.stdout + done.stderr
    ready, last = done.stdout.splitlines()
    assert ready == "ready"
    assert re.fullmatch(r"CUDA 13\.5, [1-9]\d* writes", last)

    full = run(*load, env={**cuda_env, "STAND_IN_IS_FULL": "1"})
    assert full.returncode == 1
    assert full.stdout == "cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY (2)\n"

    none = run(*load)
    assert none.returncode == cuda.MISSING
    assert "libcuda.so.1, was not found" in none.stdout


@needs_no_driver
@pytest.mark.slow
def test_a_sick_gpu_fails_the_first_step_which_still_tells_what_there_is(tmp_path: Path) -> None:
    folder, scenario = tmp_path / "step", tmp_path / "sick.yaml"
    folder.mkdir()
    scenario.write_text(SICK)
    with ServedNode(tmp_path / "n", "--scenario", str(scenario)) as node:
        run(*PROGRAM, "--step", "tools.hardware.node:driver", "--folder", str(folder), env=node.env)
    result = json.loads((folder / "result.json").read_text())
    assert result["verdict"] == "failed"
    assert result["data"]["problems"] == ["GPU 0: lost"]
    assert result["data"]["simulated"] is True
    lost, refusing = result["data"]["gpus"]
    assert lost["usable"] is False
    assert refusing["usable"] is True
    assert refusing["processes"] is None
    assert refusing["readings"]["power_w"] is None
    assert any("nvmlDeviceGetPowerUsage" in failure for failure in refusing["failures"])


@needs_no_driver
@pytest.mark.slow
def test_a_load_that_the_driver_does_not_show_fails(
    tmp_path: Path, cuda_env: dict[str, str]
) -> None:
    """CUDA says that it works, and the simulated driver sees nothing of it."""
    folder = tmp_path / "step"
    folder.mkdir()
    step = ("--step", "tools.hardware.load:load", "--folder", str(folder))
    with ServedNode(tmp_path / "n", "--scenario", "homelab") as node:
        paths = f"{node.env['LD_LIBRARY_PATH']}:{cuda_env['LD_LIBRARY_PATH']}"
        assert run(*PROGRAM, *step, env={**node.env, "LD_LIBRARY_PATH": paths}).returncode == 0
    result = json.loads((folder / "result.json").read_text())
    assert result["verdict"] == "failed"
    assert result["text"].startswith("256 MiB were allocated, used memory grew by ")
    assert len(result["data"]["looks"]) > 5
