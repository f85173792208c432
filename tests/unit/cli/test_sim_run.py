from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from gpuplugin.cli.main import main
from sim.cli import run as simrun
from sim.cli.report import FEW, MOST_ROWS, as_text
from sim.cli.run import busy_moment_s, span_s
from sim.node.scenario import parse_scenario
from sim.study.report import report_of
from tests.unit.sim.outcomes import gpu, outcome, record

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7d", 604800.0),
        ("1d12h", 129600.0),
        ("0.5d", 43200.0),
        ("90s", 90.0),
        ("1m30s", 90.0),
        ("250ms", 0.25),
    ],
)
def test_durations_with_days(text: str, seconds: float) -> None:
    assert span_s(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "0s", "-1d", "12h1d", "1d 2h", "forever", "1dd"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        span_s(text)


def test_the_moment_of_the_slices_is_one_with_all_tenants() -> None:
    text = """
gpus: [{model: a100-sxm4-80gb}]
pods:
  - {name: a, start_s: 60, workload: {kind: closed-loop, busy_ms: 1}}
  - {name: b, start_s: 5000, workload: {kind: closed-loop, busy_ms: 1}}
"""
    scenario = parse_scenario(text, "test")
    assert busy_moment_s(scenario, 600) == 61.0
    assert busy_moment_s(scenario, 10) == 1.0
    assert busy_moment_s(scenario, 1) == 0.5
    assert busy_moment_s(scenario, 6000) == 5001.0


def test_few_tenants_have_rows_of_their_own_and_many_are_counted_by_kind() -> None:
    few = as_text(report_of(outcome(*(record(f"a-{n}", latency_ms=[2]) for n in range(FEW)))))
    assert sum(line.startswith("a-") for line in few) == FEW
    many = as_text(report_of(outcome(*(record(f"a-{n}", latency_ms=[2]) for n in range(FEW + 1)))))
    assert [line.split()[1] for line in many if line.startswith("a  ")] == [str(FEW + 1)]


def test_what_nobody_can_tell_is_a_dash() -> None:
    lines = as_text(report_of(outcome(record("a-0"), gpus=[gpu(samples=[])])))
    (row,) = [line for line in lines if line.startswith("a-0")]
    assert row.split()[1:] == ["0", "0", "0", *"-" * 7, "0", "%", "0", "0"]


def test_tables_that_are_too_long_say_so() -> None:
    lines = as_text(report_of(outcome(*(record(f"k{n}x") for n in range(MOST_ROWS + 9)))))
    assert "... and 9 more kinds (all are in --report)" in lines


def test_without_plotly_the_extra_is_named_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(simrun, "find_spec", lambda _name: None)
    page = tmp_path / "page.html"
    assert main(["sim", "run", "homelab", "--html", str(page)]) == 1
    out, err = capsys.readouterr()
    said = "gpuplugin: --html needs plotly: pip install 'gpuplugin-sim[report]'\n"
    assert (out, err) == ("", said)
    assert not page.exists()


def listed(capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str) -> dict[str, int]:
    """Capacity by resource after ten seconds of a scenario, as the event log has it."""
    events = tmp_path / "events.jsonl"
    code = main(["sim", "run", *arguments, "--until", "10s", "--quiet", "--events", str(events)])
    assert (code, capsys.readouterr()) == (0, ("", ""))
    facts = [json.loads(line) for line in events.read_text().splitlines()]
    return {fact["resource"]: fact["capacity"] for fact in facts if fact["kind"] == "list"}


def test_the_scenarios_own_configuration_counts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert listed(capsys, tmp_path, "mig") == {
        "nvidia.com/gpu": 1,
        "nvidia.com/mig-1g.10gb": 8,
        "nvidia.com/mig-2g.20gb": 1,
        "nvidia.com/mig-3g.40gb": 1,
    }


def test_a_flag_wins_over_the_scenarios_configuration(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert listed(capsys, tmp_path, "mig", "--mig-strategy", "none") == {"nvidia.com/gpu": 3}


def test_a_variable_wins_over_the_scenarios_configuration(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIG_STRATEGY", "none")
    assert listed(capsys, tmp_path, "mig") == {"nvidia.com/gpu": 3}


def test_a_file_of_the_users_takes_the_place_of_the_scenarios_configuration(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("sharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}\n")
    assert listed(capsys, tmp_path, "mig", "--config-file", str(file)) == {"nvidia.com/gpu": 12}


@pytest.mark.parametrize(
    ("config", "code", "said"),
    [
        ("{flags: {migStrategy: some}}", 1, ": config.flags.migStrategy: must be"),
        ("{flags: {migStrategi: none}}", 0, "config of the scenario own/one: flags.migStrategi"),
    ],
)
def test_what_is_wrong_with_the_scenarios_configuration_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, config: str, code: int, said: str
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"name: own/one\ngpus: [{{model: t4}}]\nconfig: {config}\n")
    assert main(["sim", "run", str(file), "--until", "10s", "--quiet"]) == code
    assert said in capsys.readouterr().err
