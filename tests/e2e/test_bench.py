"""`gpuplugin bench` as a user runs it, with so few calls that its figures mean nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from benchmarks.results import as_json, read_run
from benchmarks.shapes import placements
from tests.component.test_bench_plugins import SCRIPT
from tests.e2e.conftest import Process, eventually, gpuplugin
from tests.unit.benchmarks.runs import a_figure, a_run, with_ratio

if TYPE_CHECKING:
    from tests.e2e.conftest import Command

LONG_S = 200.0
"""For what takes half a minute on a machine that has nothing else to do."""
NAME = "{http://www.w3.org/2000/svg}"


def bench(*arguments: str, timeout_s: float = 50) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpuplugin", "bench", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.mark.slow
def test_allocate_with_another_plugin_beside_ours(tmp_path: Path) -> None:
    script = tmp_path / "tiny.py"
    script.write_text(SCRIPT)
    json, svg = tmp_path / "run.json", tmp_path / "run.svg"
    done = bench(
        "allocate", "--quick", "--calls", "2", "--json", str(json), "--plot", str(svg),
        "--plugin", f"tiny={sys.executable} {script} watcher {{kubelet_dir}}",
        "--floor", f"tiny={sys.executable} {script} classic {{kubelet_dir}}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ALLOCATE" in done.stdout
    run = read_run(json)
    found = {(one.case, one.subject): one for one in run.figures}
    case = f"1 device, 8 x 10, {placements()[0]}"
    for subject, expected in (
        ("tiny, empty", {"unix echo"}),
        ("tiny", {"unix echo", "tiny, empty"}),
        ("gpuplugin", {"unix echo", "tiny"}),
    ):
        assert {ratio.floor for ratio in found[case, subject].ratios} == expected
    assert ("8 devices, 8 x 10, one core", "gpuplugin") in found
    assert ("8 devices, 8 x 10, one core", "tiny") not in found, "it has two devices"
    assert found["8 x 10", "engine grpcio"].n == 2 * 3
    assert found["8 x 10", "engine grpcio"].verdicts
    assert not found[case, "tiny"].verdicts
    assert ("8 x 10, 16 x 16 calls/s", "engine grpcio") in found
    assert ET.parse(svg).getroot().tag == f"{NAME}svg"  # noqa: S314 - our own


@pytest.mark.slow
def test_two_runs_are_compared(tmp_path: Path) -> None:
    files = {}
    for name, ratio in (("before", 1.05), ("after", 1.5)):
        run = a_run(with_ratio(a_figure(10, 9, 11), ratio, ratio - 0.02, ratio + 0.02))
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(as_json(run))
    before, after = str(files["before"]), str(files["after"])
    same = gpuplugin("bench", "--compare", before, before)
    assert (same.returncode, "WORSE" in same.stdout) == (0, False), same.stderr
    worse = gpuplugin("bench", "--compare", before, after)
    assert (worse.returncode, "WORSE" in worse.stdout) == (1, True)
    assert gpuplugin("bench", "--compare", after, before).returncode == 0
    assert gpuplugin("bench", "--compare", before, after, "--threshold", "2").returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(LONG_S + 10)
def test_lists_and_life_of_the_real_plugin(tmp_path: Path) -> None:
    json = tmp_path / "run.json"
    suites = ("listing", "life")
    done = bench(
        *suites, "--calls", "3", "--client", "grpcio", "--json", str(json), timeout_s=LONG_S
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.split() if line.lower() in suites] == [
        suite.upper() for suite in suites
    ]
    found = {one.case: one for one in read_run(json).figures if one.subject == "gpuplugin"}
    assert 10 < found["start to registered"].p50.value < 60_000
    assert 5 < found["resident, idle"].p50.value < 2_000
    assert found["first list, whole plugin"].n == 3 * 3
    assert 4 < found["size of the list, 8 x 10"].p50.value < 6
    assert found["CPU of a call, 8 devices"].p50.value > 0


@pytest.mark.slow
def test_an_end_from_outside_takes_plugins_along(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    script = f"echo $$ >{mark}.new && mv {mark}.new {mark}; exec sleep 600"
    plugin = f"sleepy=sh -c '{script}' {{kubelet_dir}}"
    with Process("bench", "life", "--calls", "1", "--plugin", plugin) as running:
        eventually(mark.exists, "the plugin was started")
        pid = int(mark.read_text())
        assert running.stop() == 143
        eventually(lambda: not Path(f"/proc/{pid}").exists(), "the plugin has ended")


@pytest.mark.slow
@pytest.mark.timeout(LONG_S + 10)
def test_faults_choices_claims_and_the_simulator(tmp_path: Path) -> None:
    json = tmp_path / "run.json"
    engine = ("--engine", "fast")
    suites = ("faults", "prefer", "claims", "simulator")
    done = bench(*suites, *engine, "--calls", "1", "--json", str(json), timeout_s=LONG_S)
    assert done.returncode == 0, done.stderr
    found = {(one.case, one.subject): one for one in read_run(json).figures}
    assert found["fault to list, 8 x 10", "gpuplugin"].n == 8
    assert {case for case, _ in found} >= {
        *(f"8 x 10, request {size}" for size in range(1, 9)),
        *(f"8 whole GPUs, nvlink, request {size}" for size in range(1, 9)),
        *(f"16 whole GPUs, pcie, request {size}" for size in (1, 8, 15, 16)),
        "whole plugin, 8 x 10, request 2",
        *("a file, synced", "Prepare, one share", "Unprepare, one share", "resident, idle"),
        *("Prepare, 200 claims at once, all of them", "64 nodes of 8 GPUs published"),
        "production-week, events",
    }


@pytest.mark.slow
def test_a_profile(tmp_path: Path) -> None:
    svg = tmp_path / "call.svg"
    done = bench("--profile", str(svg), "--calls", "50")
    assert done.returncode == 0, done.stderr
    assert "handler: bytes to bytes" in done.stdout
    bars = list(ET.parse(svg).getroot().iter(f"{NAME}rect"))  # noqa: S314 - our own
    assert len(bars) == 2 * 8


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["nothing"], 2, "no suite 'nothing'; there are allocate"),
        (["--engine", "diesel"], 2, "no engine 'diesel'"),
        (["--plugin", "nameless"], 2, "a plugin is NAME=COMMAND"),
        (["--private-kubelet-dir", "x"], 2, "there is no --plugin x="),
        (["--plugin", "gpuplugin=x {kubelet_dir}"], 2, "a name of its own"),
        (["--floor", "x=y {kubelet_dir}"], 2, "--floor: there is no --plugin x="),
        (["--floor", "x=y"], 2, "--floor: x would register with the kubelet"),
        (["--compare", "/none", "/none"], 1, "/none cannot be read"),
        (["allocate", "--json", "/nowhere/x.json"], 1, "/nowhere/x.json"),
        (
            ["listing", "--plugin", "free=/opt/plugin"],
            2,
            "free would register with the kubelet of this machine",
        ),
    ],
)
def test_what_cannot_be_done_is_told(
    command: Command, arguments: list[str], status: int, text: str
) -> None:
    done = command("bench", *arguments)
    assert done.returncode == status
    assert text in done.stderr


@pytest.mark.slow
def test_what_a_plugin_says_that_does_not_start_is_told() -> None:
    broken = "broken=sh -c 'echo ouch >&2; exit 3' {kubelet_dir}"
    done = bench("listing", "--calls", "1", "--plugin", broken)
    assert done.returncode == 1
    assert "ouch" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_ctrl_c_ends_it_without_a_traceback(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    command = [sys.executable, "-m", "gpuplugin", "bench", "allocate", "--quick"]
    process = subprocess.Popen(
        [*command, "--json", str(file)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "one call after the other" in line:  # servers run, in processes of their own
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, words = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in words
    assert list(tmp_path.iterdir()) == []
