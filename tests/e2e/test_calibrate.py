"""`gpuplugin calibrate` as a process: what it says where something is missing, and a whole run.

The run has NVIDIA's bindings, on a CUDA library that computes nothing: see `standin.c`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sim.calibrate.analysis import Stamps
from sim.calibrate.edges import Target
from sim.calibrate.measure import Evidence, Pair
from sim.gpu.calibration import load_calibration
from tests.e2e import standin
from tests.e2e.served import ServedNode
from tests.e2e.test_commands import needs_no_driver

if TYPE_CHECKING:
    from collections.abc import Mapping

PROGRAM = (sys.executable, "-m", "gpuplugin")
SCENARIO = "gpus: [{model: a100-sxm4-80gb, count: 2}]"
MIG = "gpus: [{model: a100-sxm4-80gb, mig: [3g.40gb]}, {model: l4, compute_mode: prohibited}]"


def calibrate(
    *arguments: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, "calibrate", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **(env or {})},
    )


def test_without_the_bindings_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda" / "__init__.py").touch()
    done = calibrate("-o", str(tmp_path / "out.yaml"), env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr == (
        "gpuplugin: cannot calibrate: NVIDIA's cuda-bindings are not installed: "
        "pip install 'gpuplugin-sim[calibrate]'\n"
    )
    assert not (tmp_path / "out.yaml").exists()


@needs_no_driver
def test_without_a_driver_it_says_so(tmp_path: Path) -> None:
    done = calibrate("-o", str(tmp_path / "out.yaml"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert "cannot calibrate: there is no NVIDIA driver on this machine" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_or_read_is_told_first(tmp_path: Path) -> None:
    done = calibrate("-o", str(tmp_path / "missing" / "out.yaml"))
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    (tmp_path / "no.json").write_text("{}")
    done = calibrate("--from", str(tmp_path / "no.json"))
    assert done.returncode == 1
    assert "no.json has no stamps" in done.stderr


def test_what_was_seen_is_kept_also_where_nothing_follows_from_it(tmp_path: Path) -> None:
    """A GPU is not to be measured again for them."""
    none = Stamps(begin_ns=0, end_ns=10**9, seen=0, gaps=())
    pair = Pair(first=none, second=none)
    target = Target(
        uuid="GPU-0",
        index=0,
        product="NVIDIA L4",
        model="l4",
        driver_version="580.1",
        has_levels=True,
        others=0,
        today=date(2026, 1, 1),
    )
    seen = Evidence(target=target, context_bytes=0, low=pair, full=pair)
    (tmp_path / "seen.json").write_text(seen.model_dump_json())
    stamps = tmp_path / "stamps.json"
    done = calibrate(
        "--from", str(tmp_path / "seen.json"), "--stamps", str(stamps), "-o", str(tmp_path / "out")
    )
    assert done.returncode == 1
    assert "cannot calibrate: both processes ran at the same time" in done.stderr
    assert Evidence.model_validate_json(stamps.read_text()) == seen
    assert not (tmp_path / "out").exists()


@needs_no_driver
@pytest.mark.slow
def test_gpus_that_cannot_be_measured(tmp_path: Path) -> None:
    scenario = tmp_path / "mig.yaml"
    scenario.write_text(MIG)
    with ServedNode(tmp_path / "n", "--scenario", str(scenario)) as node:
        done = calibrate(env=node.env)
        assert done.returncode == 1
        assert "GPU 0 is in MIG mode, and a whole GPU is needed; GPU 1 is in compute mode" in (
            done.stderr
        )
        done = calibrate("--gpu", "7", env=node.env)
        assert "there is no GPU 7; the driver lists 0 (GPU-" in done.stderr


@needs_no_driver
@pytest.mark.slow
def test_without_the_library_of_cuda_it_says_what_is_missing(tmp_path: Path) -> None:
    scenario = tmp_path / "a100.yaml"
    scenario.write_text(SCENARIO)
    with ServedNode(tmp_path / "n", "--scenario", str(scenario)) as node:
        done = calibrate(env=node.env)
    assert done.returncode == 1
    assert "the driver's CUDA library, libcuda.so.1, was not found" in done.stderr


@needs_no_driver
@pytest.mark.slow
def test_it_measures_compares_and_writes_what_the_simulator_takes(tmp_path: Path) -> None:
    library, state = standin.built(tmp_path), tmp_path / "state"
    state.mkdir()
    scenario = tmp_path / "a100.yaml"
    scenario.write_text(SCENARIO)
    out, stamps = tmp_path / "a100-own.yaml", tmp_path / "stamps.json"
    with ServedNode(tmp_path / "n", "--scenario", str(scenario)) as node:
        env = {
            **node.env,
            "LD_LIBRARY_PATH": f"{node.env['LD_LIBRARY_PATH']}:{library}",
            "STAND_IN": str(state),
        }
        done = calibrate("-o", str(out), "--stamps", str(stamps), env=env)
    assert done.returncode == 0, done.stderr
    (measured,) = re.findall(r"^slice, level default, us +(\S+) ", done.stdout, re.MULTILINE)
    assert measured == "2,000"
    assert "+2.4 %" in done.stdout
    assert "bare context, MiB" in done.stdout

    found = load_calibration(str(out), "a100-sxm4-80gb")
    assert found.slice_us.default.median == pytest.approx(2000, abs=1)
    assert found.switch_us.low.median == pytest.approx(100, abs=1)
    assert found.switch_us.full.median == pytest.approx(300, abs=1)
    assert found.context_mib == 480

    again = calibrate("--from", str(stamps), "--json")
    assert again.returncode == 0, again.stderr
    data = json.loads(again.stdout)
    assert data["slice_us"] == found.slice_us.model_dump(exclude_none=True)
    assert data["compared"][0]["what"] == "slice, level default, us"
    printed = calibrate("--from", str(stamps))
    assert printed.stdout == out.read_text()

    share = ("sim", "share", "--model", "a100-sxm4-80gb", "--clients", "2", "--busy-ms", "10")
    done = subprocess.run(
        [*PROGRAM, *share, "--calibration", str(out)], capture_output=True, text=True, check=False
    )
    assert "slices of 2.000 ms, switches of 0.300 ms" in done.stdout
    assert f"measured on this GPU on {found.measured_on}" in done.stdout


@needs_no_driver
@pytest.mark.slow
def test_make_hardware_records_it(tmp_path: Path) -> None:
    library, state, folder = standin.built(tmp_path), tmp_path / "state", tmp_path / "step"
    state.mkdir()
    folder.mkdir()
    step = ("--step", "tools.hardware.calibrate:calibrate", "--folder", str(folder))
    with ServedNode(tmp_path / "n", "--scenario", "homelab") as node:
        paths = f"{node.env['LD_LIBRARY_PATH']}:{library}"
        env = {**node.env, "LD_LIBRARY_PATH": paths, "STAND_IN": str(state)}
        subprocess.run(
            [sys.executable, "-m", "tools.hardware", *step],
            env=env,
            cwd=Path(__file__).parents[2],
            check=True,
            timeout=60,
        )
    result = json.loads((folder / "result.json").read_text())
    assert result["verdict"] == "ok", result
    assert result["text"] == "slices of 2000 us, switches of 100 to 300 us, 480 MiB for a context"
    assert result["data"]["calibration"]["format"] == 1
    assert len(result["data"]["evidence"]["low"]["first"]["gaps"]) > 100
