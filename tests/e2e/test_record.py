"""`gpuplugin record` as a process: what it writes is a node like the one it looked at."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sim.study.usage import read_usage
from tests.e2e.conftest import Process, eventually, gpuplugin
from tests.e2e.test_commands import needs_no_driver

SHORT = ("--for", "600ms", "--interval", "200ms")

SCENARIO = """
driver_version: 570.133.20
gpus:
  - {model: h100-sxm5-80gb, count: 2, mig: [1g.10gb, 2g.20gb]}
  - {model: t4}
tenants:
  - {name: train, gpu: 2, utilization: 0.6, memory_gib: 4}
  - {name: serve, gpu: 2, utilization: 0.2, memory_gib: 2}
faults:
  - {at_s: 0.2, gpu: 0, what: {kind: xid, xid: 43, mig: 1}}
  - {at_s: 0.3, gpu: 2, what: {kind: ecc}}
"""


BUSY = """
gpus: [{model: l4}]
tenants: [{name: serve, gpu: 0, workload: {kind: closed-loop, busy_ms: 20, idle_ms: 30}}]
"""


def devices(scenario: str) -> list[dict[str, Any]]:
    result = gpuplugin("devices", "--backend", "sim", "--scenario", scenario, "--json")
    assert result.returncode == 0, result.stderr
    gpus: list[dict[str, Any]] = json.loads(result.stdout)["gpus"]
    return gpus


def without(gpus: list[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    return [
        {
            **{key: value for key, value in gpu.items() if key not in keys},
            "mig_devices": [
                {key: value for key, value in mig.items() if key not in keys}
                for mig in gpu["mig_devices"]
            ],
        }
        for gpu in gpus
    ]


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    file = tmp_path / "node.yaml"
    file.write_text(SCENARIO)
    return file


def record(scenario: Path, output: Path, *arguments: str) -> str:
    result = gpuplugin(
        *("record", "--backend", "sim", "--scenario", str(scenario), *SHORT),
        *("-o", str(output), *arguments),
    )
    assert result.returncode == 0, result.stderr
    assert gpuplugin("sim", "scenario", "check", str(output)).returncode == 0
    return output.read_text()


@pytest.mark.slow
def test_a_recorded_node_is_the_same_node(scenario: Path, tmp_path: Path) -> None:
    recorded = tmp_path / "recorded.yaml"
    text = record(scenario, recorded)
    assert devices(str(recorded)) == devices(str(scenario))
    assert "It identifies hardware" in text
    assert "driver_version: 570.133.20" in text
    assert "xid: 43" in text
    assert "kind: ecc" in text

    again = record(recorded, tmp_path / "again.yaml")
    for line in ("name: train", "utilization: 0.6", "memory_gib: 4.0", "name: serve"):
        assert line in text
        assert line in again


@pytest.mark.slow
def test_a_scrubbed_node_is_alike_and_nobody_in_particular(scenario: Path, tmp_path: Path) -> None:
    recorded = tmp_path / "recorded.yaml"
    text = record(scenario, recorded, "--scrub")
    original, replayed = devices(str(scenario)), devices(str(recorded))
    secret = ("uuid", "pci_bus_id")
    assert without(replayed, *secret) == without(original, *secret)
    for gpu in original:
        assert gpu["uuid"] not in text
        assert not any(mig["uuid"] in text for mig in gpu["mig_devices"])
    assert "train" not in text
    assert devices(str(recorded)) == replayed


def test_a_recording_goes_to_standard_output() -> None:
    result = gpuplugin("record", "--backend", "sim", "--scenario", "homelab", *SHORT)
    assert result.returncode == 0, result.stderr
    assert "model: " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--for", "soon"), "--for must be a duration"),
        (("--interval", "0s"), "--interval must be longer than nothing"),
        (("--scenario", "nowhere"), "nowhere"),
        (("--for", "1ms", "-o", "/nowhere/file.yaml"), "/nowhere/file.yaml"),
    ],
)
def test_what_cannot_be_recorded_is_told(arguments: tuple[str, ...], words: str) -> None:
    result = gpuplugin("record", "--backend", "sim", *arguments)
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def unfinished(pid: int, folder: Path) -> str:
    """What a process has written of files in a folder that have no name yet."""
    text = ""
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            if str(one.readlink()).startswith(str(folder)) and "(deleted)" in str(one.readlink()):
                text += one.read_text()
    return text


@needs_no_driver
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_sigterm_keeps_what_was_recorded(tmp_path: Path, how: signal.Signals) -> None:
    file = tmp_path / "node.yaml"
    to_file = ("-o", str(file), "--interval", "100ms", "--for", "5m")
    node = tmp_path / "busy.yaml"
    node.write_text(BUSY)
    with Process("record", "--backend", "sim", "--scenario", str(node), *to_file) as recording:
        eventually(lambda: "serve" in unfinished(recording.pid, tmp_path), "it records")
        recording.signal(how)
        assert recording.exit_status() == 0, recording.output
    assert f"wrote {file}" in recording.output
    assert {one.name for one in tmp_path.iterdir()} == {file.name, node.name}
    assert "ended by hand after" in file.read_text()
    usage = read_usage(file)
    assert [tenant.owner for tenant in usage.tenants.values()] == ["serve"]
    assert usage.looks
    assert gpuplugin("sim", "scenario", "check", str(file)).returncode == 0


def test_nothing_is_left_of_a_recording_that_fails(tmp_path: Path) -> None:
    scenario = tmp_path / "wrong.yaml"
    scenario.write_text("gpus: []\n")
    out = tmp_path / "out"
    out.mkdir()
    result = gpuplugin("record", "--backend", "sim", "--scenario", str(scenario), "-o", f"{out}/x")
    assert result.returncode == 1
    assert list(out.iterdir()) == []


def test_without_a_driver_it_says_so() -> None:
    result = gpuplugin("record", *SHORT)
    assert result.returncode == 1
    assert "libnvidia-ml.so.1 was not found" in result.stderr


@pytest.mark.slow
def test_advice_from_a_recording(tmp_path: Path) -> None:
    node, file = tmp_path / "busy.yaml", tmp_path / "recorded.yaml"
    node.write_text(BUSY)
    recorded = gpuplugin(
        "record", "--backend", "sim", "--scenario", str(node), "--for", "6s", "--interval", "250ms",
        "-o", str(file),
    )  # fmt: skip
    assert recorded.returncode == 0, recorded.stderr
    result = gpuplugin(
        "advise", "--model", "l4", "--record", str(file), "--workload", "api:15/100/2:8", "--json"
    )
    assert result.returncode == 0, result.stderr
    advice = json.loads(result.stdout)
    assert [(one["name"], one["source"]) for one in advice["workloads"]] == [
        ("api", "command line"),
        ("serve", "recording"),
    ]
    serve = advice["workloads"][1]
    assert serve["busy_ms"] / serve["period_ms"] == pytest.approx(0.4, abs=0.1)
    assert {"arrival", "busy_ms", "occupancy"} <= set(serve["assumed"])
    assert "at 0.25 s: shows for how much of the time" in advice["history"][0]
