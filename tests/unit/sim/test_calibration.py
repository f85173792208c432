"""A calibration in a file: what it replaces, where it shows, and what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from gpuplugin.cli.main import main
from hal import GIB, TimeSliceLevel
from sim.advise.advice import Advice, Plan, memory_of, trials
from sim.advise.trial import Trial, try_out
from sim.advise.words import confidence
from sim.advise.workload import parsed_workload
from sim.cli.report import as_text
from sim.gpu.calibration import CannotUse, calibrated, load_calibration
from sim.gpu.profiles import MIB, load_profile, slice_parameters
from sim.node.scenario import ScenarioError, parse_scenario
from sim.study.report import report_of
from sim.study.share import SharePlan
from sim.virtual.run import VirtualRun
from sim.virtual.settings import load_for

if TYPE_CHECKING:
    from sim.study.runreport import RunReport


def spread(median: float) -> dict[str, float]:
    return {"median": median, "low": median - 1, "high": median + 1, "count": 400}


DATA: dict[str, object] = {
    "format": 1,
    "measured_on": "2026-11-30",
    "model": "l4",
    "product": "NVIDIA L4",
    "driver_version": "580.105.08",
    "slice_us": {"default": spread(1000), "long": spread(8000)},
    "switch_us": {"low": spread(100), "full": spread(400)},
    "context_mib": 1024.0,
    "mps": {"share": 0.25, "command": "infer --batch 8", "alone_s": 8.0, "beside_s": 10.0},
}


def written(folder: Path, **changes: object) -> str:
    path = folder / "l4.yaml"
    path.write_text(yaml.safe_dump({**DATA, **changes}))
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return written(tmp_path)


def test_it_takes_the_place_of_slices_switches_and_context(path: str) -> None:
    profile = calibrated(load_profile("l4"), load_calibration(path, "l4"))
    parameters = slice_parameters(profile)
    assert parameters.slice_ns == 1_000_000
    assert parameters.switch_ns(0, 0) == 100_000
    assert parameters.switch_ns(1, 1) == 400_000
    assert slice_parameters(profile, TimeSliceLevel.LONG).slice_ns == 8_000_000
    short = slice_parameters(profile, TimeSliceLevel.SHORT)
    assert short.slice_ns == slice_parameters(load_profile("l4"), TimeSliceLevel.SHORT).slice_ns
    assert profile.context_bytes == 1024 * MIB
    assert profile.sources["time_slice"] == (
        "measured on this GPU on 2026-11-30, with driver 580.105.08"
    )


SHARE = ("sim", "share", "--model", "l4", "--clients", "2", "--busy-ms", "10")


def test_share_uses_it_and_says_so(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHARE, "--calibration", path]) == 0
    text = capsys.readouterr().out
    assert "slices of 1.000 ms, switches of 0.400 ms" in text
    assert "Slices and switches were measured on this GPU on 2026-11-30" in text

    assert main([*SHARE, "--calibration", path, "--level", "short"]) == 0
    assert "The length of the slice is assumed" in capsys.readouterr().out
    assert main([*SHARE, "--calibration", path, "--level", "long"]) == 0
    assert "assumed" not in capsys.readouterr().out

    assert main([*SHARE, "--calibration", path, "--mechanism", "mps", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["slowdown_mean"] == pytest.approx(1.25, abs=0.01)
    assert found["inputs"]["calibration"]["model"] == "l4"
    assert main([*SHARE, "--calibration", path, "--mechanism", "mps"]) == 0
    assert "on 2026-11-30: 0.25, with the command 'infer --batch 8'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("l4", "never measured on l4: they are those of an A100 and of RTX 30 to 50."),
        ("t4", "of t4: fitted to one published run of five processes"),
        ("a100-sxm4-80gb", "of a100-sxm4-80gb: slice and switch agree with a published run"),
    ],
)
def test_without_one_share_and_advise_name_the_source_of_the_numbers(
    model: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", "share", "--model", model, "--clients", "2", "--busy-ms", "10"]) == 0
    assert said in capsys.readouterr().out
    assert said in advised(Plan(model, PODS))


PODS = (parsed_workload("api:15/100/2:2"),)


def advised(plan: Plan) -> str:
    """What an advice says of how far it can be trusted, whatever it is."""
    return "\n".join(confidence(Advice(plan, (), 0, {}, ())))


def test_advise_uses_it_and_says_so(path: str) -> None:
    calibration = load_calibration(path)
    said = advised(Plan("l4", PODS, calibration=calibration))
    assert "Slices and switches were measured on this GPU on 2026-11-30" in said
    assert "never measured" not in said
    assert "The length of the slice is assumed" in advised(
        Plan("l4", PODS, level=TimeSliceLevel.SHORT, calibration=calibration)
    )
    assert all(
        trial.calibration is calibration
        for trial in trials(Plan("l4", PODS, calibration=calibration), 2, 1)
    )

    pods = (parsed_workload("batch:50/50/2"),) * 2
    usual = try_out(Trial("l4", pods))
    own = try_out(Trial("l4", pods, calibration=load_calibration(path)))
    assert own.switching == pytest.approx(400 / 1400, abs=0.01)
    assert own.switching > usual.switching


def test_a_context_that_is_larger_leaves_room_for_fewer(path: str) -> None:
    profile = load_profile("l4")
    room = profile.memory_bytes - (profile.memory_reserved_bytes or 0)
    each_gib = (room / 2 - 600 * MIB) / GIB  # two fit with 300 MiB each, not with 1 GiB
    pods = (parsed_workload(f"api:15/100/{each_gib:.3f}:2"),)
    assert memory_of(Plan("l4", pods), 2).ooms_per_week == 0
    few = memory_of(Plan("l4", pods, calibration=load_calibration(path)), 2)
    assert few.ooms_per_week > 0
    assert SharePlan("l4", 2, 10, calibration=load_calibration(path)).client_bytes == 1024 * MIB


SCENARIO = """
gpus: [{model: l4}]
tenants:
  - {name: a, gpu: 0, workload: {kind: closed-loop, busy_ms: 50}, memory: {start_gib: 1}}
  - {name: b, gpu: 0, workload: {kind: closed-loop, busy_ms: 50}, memory: {start_gib: 1}}
"""


def run(text: str, path: str | None = None) -> RunReport:
    scenario = parse_scenario(text, "two")
    if path is not None:
        scenario = scenario.with_calibration(path)
    settings = load_for(scenario, {}, {}, None).settings
    return report_of(VirtualRun(scenario, settings, 5.0).run())


def test_a_scenario_takes_it_as_a_file_or_as_a_key(path: str) -> None:
    usual, own = run(SCENARIO), run(SCENARIO, path)
    assert own.switching_share == pytest.approx(400 / 1400, abs=0.01)
    assert 0 < (usual.switching_share or 0) < (own.switching_share or 0)
    assert usual.slices_from[0].startswith("Slices and switches were never measured on l4")
    assert own.slices_from == [
        "Slices and switches were measured on this GPU on 2026-11-30, with driver 580.105.08."
    ]
    assert own.slices_from[0] in as_text(own)
    inline = SCENARIO + f"calibrations: [{json.dumps(DATA)}]\n"
    assert run(inline) == own


def test_one_of_another_model_is_refused(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SHARE[:3], "t4", *SHARE[4:], "--calibration", path]) == 1
    assert "is of a l4, not of a t4" in capsys.readouterr().err
    with pytest.raises(ScenarioError, match="scenario two has none: its GPUs are t4"):
        parse_scenario("gpus: [{model: t4}]\nname: two", "two").with_calibration(path)
    with pytest.raises(CannotUse, match="cannot be read"):
        load_calibration(str(tmp_path / "missing.yaml"))


@pytest.mark.parametrize(
    "command",
    [
        ("sim", "run", "homelab"),
        ("sim", "up", "homelab", "--kubelet-dir", "/nonexistent"),
        ("sim", "sweep", "homelab", "--set", "replicas=2"),
    ],
)
def test_commands_for_scenarios_refuse_one_of_another_model(
    command: tuple[str, ...], path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--calibration", path]) == 1
    assert "is of a l4, and scenario homelab has none: its GPUs are rtx3090" in (
        capsys.readouterr().err
    )


def test_a_run_and_a_sweep_take_it(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = Path(path).with_name("two.yaml")
    scenario.write_text(SCENARIO)
    options = ("--until", "3s", "--quiet", "--calibration", path)
    report = scenario.with_name("report.json")
    assert main(["sim", "run", str(scenario), *options, "--report", str(report)]) == 0
    assert json.loads(report.read_text())["switching_share"] == pytest.approx(400 / 1400, abs=0.01)
    sweep = ("sim", "sweep", str(scenario), "--set", "seed=1", "--seeds", "1", "--processes", "1")
    capsys.readouterr()
    assert main([*sweep, *options, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["combinations"]
    assert found["figures"]["switching_share"]["mean"] == pytest.approx(400 / 1400, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "format"),
        ({"model": "l5"}, "no GPU model is called 'l5'"),
        ({"slice_us": {}}, "slice_us.default: is required"),
        ({"context_mib": -1}, "must be at least 0"),
        ({"speed": 1}, "speed"),
    ],
)
def test_each_wrong_key_is_named(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(CannotUse, match="cannot be used") as caught:
        load_calibration(written(tmp_path, **changes))
    assert said in str(caught.value)
