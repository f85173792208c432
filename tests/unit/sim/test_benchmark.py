"""The benchmark of the simulator counts what it says; how fast it is, no test asserts."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from benchmarks import simulator
from benchmarks.simulator import OneRun, Speed, made_up_fleet, run_replay, run_scenario, speed_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest


def test_a_run_of_a_scenario_counts_its_events() -> None:
    short, long = run_scenario("noisy-neighbour", 5), run_scenario("noisy-neighbour", 50)
    assert (short.simulated_s, long.simulated_s) == (5, 50)
    assert long.events > 5 * short.events > 0
    assert short.peak_mib > 10


def test_a_replay_counts_who_came_and_went(tmp_path: Path) -> None:
    nodes, pods = tmp_path / "nodes.csv", tmp_path / "pods.csv"
    nodes.write_text("sn,cpu_milli,memory_mib,gpu,model\nn0,1000,1000,1,T4\n")
    pods.write_text(
        "name,cpu_milli,memory_mib,num_gpu,gpu_milli,qos,creation_time,deletion_time\n"
        "one,1,1,1,500,BE,10,110\nmany,1,1,8,1000,BE,10,110\n"
    )
    run = run_replay(str(nodes), str(pods))
    assert (run.simulated_s, run.events) == (110, 3), "nobody has room for eight GPUs"


def test_the_fleet_that_is_made_up_is_always_the_same_and_can_be_replayed() -> None:
    assert made_up_fleet(5, 50) == made_up_fleet(5, 50)
    _, pods = made_up_fleet(5, 50)
    assert {bool(pod.gpus) != bool(pod.share) for pod in pods} == {True}
    assert [pod.created_s for pod in pods] == sorted(pod.created_s for pod in pods)


def test_figures_are_medians_and_the_peak_of_memory() -> None:
    runs = [OneRun(60.0, wall_s, 1000, peak_mib) for wall_s, peak_mib in ((1, 5), (2, 9), (30, 7))]
    assert speed_of("x", runs) == Speed("x", 60, 2, 30, 1000, 500, 9)


def test_the_command_prints_a_table_and_writes_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def here(call: Callable[..., OneRun], *arguments: object) -> OneRun:
        return call(*arguments)

    monkeypatch.setattr(simulator, "in_own_process", here)
    monkeypatch.setattr(simulator, "SCENARIOS", (("homelab", 10.0),))
    monkeypatch.setattr(simulator, "MACHINES", 3)
    monkeypatch.setattr(simulator, "PODS", 20)
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["simulator", "--turns", "1", "--json", str(file)])
    simulator.main()
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert [one["name"] for one in json.loads(file.read_text())] == ["homelab", "replay (made up)"]
