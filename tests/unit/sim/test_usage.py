"""Usage over time: what is written of a node, and the workloads that are read from it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import yaml

from gpuplugin.core.usage import PodName
from sim.advise.history import (
    CannotRead,
    History,
    PodSeries,
    Requests,
    shown,
    workloads_of,
)
from sim.advise.recordings import history_of
from sim.node.scenario import load_scenario
from sim.study.usage import NoUsage, owner_of, read_usage
from tests.unit.sim.virtualnode import record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sim.advise.workload import Workload

TENANTS = """
gpus: [{model: l4, count: 3}]
tenants:
  - name: api
    gpu: 0
    workload: {kind: closed-loop, busy_ms: 20, idle_ms: 80}
    memory: {start_gib: 2, context_mib: 0}
  - name: notebook
    gpu: 1
    workload: {kind: closed-loop, busy_ms: 10000, idle_ms: 20000}
    memory: {start_gib: 1, grow_gib: 0.5, every_s: 60, most_gib: 20, context_mib: 0}
  - name: late
    gpu: 2
    start_s: 600
    workload: {kind: duty-cycle, period_ms: 1000, share: 0.5}
    memory: {start_gib: 3, context_mib: 0}
"""


def workloads(*files: Path, by: str = "workload") -> tuple[dict[str, Workload], list[str]]:
    history, notes = history_of([str(file) for file in files])
    found, told = workloads_of(
        history, "namespace" if by == "namespace" else "workload", Requests(), "recording"
    )
    return {one.name: one for one in found}, [
        shown(history, "recording", Requests()),
        *notes,
        *told,
    ]


def test_a_recording_shows_busy_time_bursts_memory_with_growth_and_arrivals(tmp_path: Path) -> None:
    found, notes = workloads(record(TENANTS, tmp_path / "a.yaml", 1200))
    assert set(found) == {"api", "notebook", "late"}
    api, notebook, late = found["api"], found["notebook"], found["late"]
    assert api.busy_share == pytest.approx(0.2, abs=0.02)
    assert api.active == pytest.approx(1.0, abs=0.01)
    assert set(api.memory_gib) == {2.0}
    assert "growth" not in api.assumed
    assert api.with_context
    assert notebook.active == pytest.approx(1 / 3, abs=0.08)
    assert (notebook.memory_gib[0], notebook.memory_gib[-1]) == pytest.approx((1.5, 11.0), abs=0.5)
    assert "growth" in notebook.assumed
    about, *each = notes
    assert re.match(r"Recording, 20(\.0)? minutes at 1 s: shows", about)
    of = {note.partition(":")[0]: note for note in each}
    assert re.search(r"in spans of (9|1\d)(\.\d)? s; ", of["notebook"])
    grown = re.search(r"([\d.]+) more an hour to the end: it may need more", of["notebook"])
    assert grown is not None
    assert float(grown[1]) == pytest.approx(30, abs=7)
    assert late.busy_share == pytest.approx(0.5, abs=0.05)
    assert of["late"].endswith("; 1 came in 20.0 minutes and stayed for 10 minutes.")
    assert "came" not in of["api"]


def test_memory_that_grows_evenly_grows_as_fast_as_is_said() -> None:
    """By 1 GiB an hour, in a history that is as short as can be."""
    step_s, gib = 90.0, 2.0**30
    moments = [step_s * number for number in range(40)]
    history = History(
        [PodSeries("ml", "a", "GPU-0", [(at_s, 0.5) for at_s in moments])],
        [PodSeries("ml", "a", "GPU-0", [(at_s, gib * at_s / 3600) for at_s in moments])],
        {},
        step_s,
    )
    _, (note,) = workloads_of(history, "workload", Requests(), "recording")
    assert ", 1 more an hour to the end" in note


def test_shares_are_those_of_moments_without_others(tmp_path: Path) -> None:
    """What a process gets beside others is not what it wants."""
    crowd = """
gpus: [{model: l4}]
tenants:
  - {name: a, gpu: 0, workload: {kind: closed-loop, busy_ms: 90, idle_ms: 10}}
  - {name: b, gpu: 0, start_s: 60, workload: {kind: closed-loop, busy_ms: 90, idle_ms: 10}}
"""
    found, _ = workloads(record(crowd, tmp_path / "a.yaml", 300))
    assert found["a"].busy_share == pytest.approx(0.9, abs=0.03)
    assert "share" not in found["a"].assumed
    assert found["b"].busy_share < 0.6
    assert "share" in found["b"].assumed


def test_a_long_recording_is_no_larger_than_a_shorter_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim.study.usage.MOST_INTERVALS", 300)
    short = record(TENANTS, tmp_path / "a.yaml", 60, 0.25)
    long = record(TENANTS, tmp_path / "b.yaml", 150, 0.25)
    assert read_usage(short).head.interval_s == 0.25
    usage = read_usage(long)
    assert usage.head.interval_s == 0.5
    assert 299 <= len(usage.looks) <= 301
    found, _ = workloads(long)
    assert found["api"].busy_share == pytest.approx(0.2, abs=0.02)


def test_recordings_of_two_nodes_are_one_history(tmp_path: Path) -> None:
    one = record(TENANTS, tmp_path / "a.yaml", 120)
    other = record(TENANTS, tmp_path / "b.yaml", 120, 2.0)
    found, notes = workloads(one, other)
    assert found["api"].count == 2
    assert found["api"].busy_share == pytest.approx(0.2, abs=0.02)
    assert "at 2 s" in notes[0]


def test_pods_are_found_and_named_by_what_made_them(tmp_path: Path) -> None:
    names = ["api-7d9f8b6c5d-x2x4z", "nb-0", "late-abcde"]

    def pods(pids: frozenset[int]) -> Mapping[int, PodName | None]:
        known = dict(zip(sorted(pids), names, strict=False))
        return {pid: PodName("ml", name) for pid, name in known.items()}

    plain = record(TENANTS, tmp_path / "a.yaml", 60, pods=pods)
    found, _ = workloads(plain)
    assert set(found) == {"ml/api", "ml/nb"}
    assert set(workloads(plain, by="namespace")[0]) == {"ml"}
    scrubbed = record(TENANTS, tmp_path / "b.yaml", 60, pods=pods, scrub=True)
    assert set(workloads(scrubbed)[0]) == {"namespace-1/workload-1", "namespace-1/workload-2"}
    text = scrubbed.read_text()
    assert not [word for word in ("ml", "x2x4z", "api", "notebook", "GPU-") if word in text]


def test_a_recording_is_a_scenario_as_before_and_yaml_below(tmp_path: Path) -> None:
    file = record(TENANTS, tmp_path / "a.yaml", 60)
    assert [tenant.name for tenant in load_scenario(str(file)).tenants] == ["api", "notebook"]
    scenario, usage = yaml.safe_load_all(file.read_text())
    assert scenario["name"] == "recorded"
    assert usage[0] == {"interval_s": 1.0, "look_s": 1.0}
    assert {"process": 0, "gpu": 0, "name": "api"}.items() <= usage[1].items()


def test_what_is_no_recording_is_said_with_its_line(tmp_path: Path) -> None:
    file = record(TENANTS, tmp_path / "a.yaml", 10)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:-1], '- [1,{"0":["x",1]}]']))
    with pytest.raises(NoUsage, match=rf"a\.yaml, line {len(lines)}: "):
        read_usage(file)
    file.write_text("gpus: [{model: l4}]\n")
    with pytest.raises(CannotRead, match="has no usage over time: record the node with"):
        history_of([str(file)])
    with pytest.raises(CannotRead, match=r"b\.yaml cannot be read"):
        history_of([str(tmp_path / "b.yaml")])


@pytest.mark.parametrize(
    ("pod", "owner"),
    [
        ("api-7d9f8b6c5d-x2x4z", "api"),
        ("db-0", "db"),
        ("exporter-x2x4z", "exporter"),
        ("trainer", "trainer"),
        ("chat-model", "chat-model"),
        ("chat-infer", "chat-infer"),
        ("my-api-v2-7d9f8b6c5d-x2x4z", "my-api-v2"),
    ],
)
def test_the_owner_is_in_the_name_of_a_pod(pod: str, owner: str) -> None:
    assert owner_of(pod) == owner
