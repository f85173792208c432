"""`gpuplugin sim run` as a process: files, errors, the same bytes again, and a browser's view."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sim.node.scenario import scenario_names
from sim.study.runreport import RunReport
from tests.e2e.browser import browse, complaints
from tests.e2e.conftest import gpuplugin

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Command


def start(folder: Path, hash_seed: str, *arguments: str) -> subprocess.Popen[bytes]:
    folder.mkdir()
    files = (f"--events={folder / 'events.jsonl'}", f"--report={folder / 'report.json'}")
    return subprocess.Popen(
        [sys.executable, "-m", "gpuplugin", "sim", "run", *arguments, "--quiet", *files],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("scenario", scenario_names())
def test_the_same_seed_gives_the_same_bytes(scenario: str, tmp_path: Path) -> None:
    runs = [start(tmp_path / seed, seed, scenario, "--until", "60s") for seed in ("1", "4242")]
    assert [run.wait(150) for run in runs] == [0, 0]
    for name in ("events.jsonl", "report.json"):
        one, other = ((tmp_path / seed / name).read_bytes() for seed in ("1", "4242"))
        assert one == other
        assert one


def test_the_report_and_the_event_log_say_the_same(tmp_path: Path) -> None:
    events, report = tmp_path / "events.jsonl", tmp_path / "report.json"
    result = gpuplugin(
        *("sim", "run", "flapping-gpu", "--until", "2m"),
        *("--events", str(events), "--report", str(report)),
    )
    assert result.returncode == 0, result.stderr
    assert "Not usable: GPU 2" in result.stdout
    assert "120 s of model time took" in result.stderr
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    assert [line["t_ns"] for line in lines] == sorted(line["t_ns"] for line in lines)
    read = RunReport.model_validate_json(report.read_text())
    assert sum(read.facts.values()) == len(lines)
    xids = [line for line in lines if line["kind"] == "happening" and line["what"] == "xid"]
    assert read.xids == {95: len(xids)} == {95: 2}
    assert read.gpus[2].faults == 2


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    runs = [
        start(tmp_path / seed, "0", "noisy-neighbour", "--until", "5s", "--seed", seed)
        for seed in ("1", "2")
    ]
    assert [run.wait(60) for run in runs] == [0, 0]
    reports = [json.loads((tmp_path / seed / "report.json").read_text()) for seed in ("1", "2")]
    assert [report["seed"] for report in reports] == [1, 2]
    assert reports[0]["kinds"][0]["served"] != reports[1]["kinds"][0]["served"]


def test_options_of_the_plugin_are_in_force(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "version: v1\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 2}]}}\n"
    )
    report = tmp_path / "report.json"
    result = gpuplugin(
        *("sim", "run", "noisy-neighbour", "--until", "90s", "--quiet"),
        *("--config-file", str(config), "--report", str(report)),
    )
    assert (result.returncode, result.stdout) == (0, "")
    assert json.loads(report.read_text())["pods"]["never_started"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nope",), "scenario nope: .*shipped scenarios: .*noisy-neighbour"),
        (("homelab", "--until", "7x"), "--until: must be a duration such as 90s, 12h or 7d"),
        (("homelab", "--until", "0s"), "--until: must be above 0"),
        (
            ("homelab", "--slices-at", "11m"),
            "--slices-at: 11m is not within the 10 minutes of the run",
        ),
        (("homelab", "--events", "/nowhere/at/all"), "/nowhere/at/all cannot be written: No such"),
        (("homelab", "--html", "/"), "/ cannot be written: Is a directory"),
        (("homelab", "--events", "/tmp/x", "--report", "/tmp/x"), "must be different files"),
        (("mig", "--mig-strategy", "single"), "MIG strategy single"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    command: Command, arguments: tuple[str, ...], said: str
) -> None:
    result = command("sim", "run", *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert re.search(said, line)


def test_a_trace_that_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    scenario = tmp_path / "traced.yaml"
    scenario.write_text(
        "gpus: [{model: a100-sxm4-80gb}]\n"
        "tenants: [{name: t, gpu: 0, workload: {kind: kernel-trace, file: /nowhere.csv}}]\n"
    )
    result = gpuplugin("sim", "run", str(scenario), "--until", "1s")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("gpuplugin: /nowhere.csv:")


@pytest.mark.slow
def test_a_browser_draws_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    made = gpuplugin("sim", "run", "noisy-neighbour", "--until", "65s", "--html", str(page))
    assert made.returncode == 0, made.stderr
    drawn = browse(page.as_uri(), tmp_path / "profile")
    body = re.sub(r"<(script|style).*?</\1>", "", drawn.stdout, flags=re.DOTALL)
    for title in ("How long requests took", "Who ran when on GPU 0", "Who held the memory"):
        assert title in body
    assert 'data-drawn="5"' in body
    assert body.count('class="main-svg"') >= 5
    assert "broken" not in body
    assert complaints(drawn) == []
