"""Replays: reading a trace, placing pods, what sharing costs them; small fleets by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations_with_replacement
from random import Random
from typing import TYPE_CHECKING

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuplugin.cli.main import main
from sim.cli.replay import span
from sim.gpu.scheduler import SliceParameters, to_ns
from sim.gpu.tenancy import Memory, Tenancy, TenantSpec
from sim.gpu.timeslicing import TimeSlicing
from sim.gpu.workloads import DutyCycle, MemoryUse
from sim.study.fleet import Replay, fleet_report, shares_of, spread
from sim.study.openb import FleetNode, FleetPod, TraceError, read_nodes, read_pods

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FREE = SliceParameters(switch_base_ns=0, switch_occupancy_ns=0)
NODES = "sn,cpu_milli,memory_mib,gpu,model\nn0,1000,1000,2,T4\nn1,1000,1000,0,\nn2,1000,1000,1,T4\n"
PODS = (
    "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,"
    "deletion_time,scheduled_time\n"
    "half,1,1,1,500,,BE,Running,10,110,10\n"
    "whole,1,1,1,1000,,LS,Running,0,50,0\n"
    "two,1,1,2,1000,,LS,Running,5,60,5\n"
    "none,1,1,0,0,,LS,Running,0,60,0\n"
)


def a_pod(
    name: str,
    share: float = 0.0,
    *,
    gpus: int = 0,
    at_s: float = 0.0,
    life_s: float = 100.0,
    batch: bool = True,
) -> FleetPod:
    return FleetPod(name, 1, 1, gpus, share, at_s, life_s, batch)


def a_node(gpus: int, cpu_milli: int = 1000) -> FleetNode:
    return FleetNode(f"n{gpus}", cpu_milli, 1000, gpus, "T4")


def test_the_trace_is_read(tmp_path: Path) -> None:
    nodes, pods = tmp_path / "nodes.csv", tmp_path / "pods.csv"
    nodes.write_text(NODES)
    pods.write_text(PODS)
    assert [(node.name, node.gpus) for node in read_nodes(str(nodes))] == [("n0", 2), ("n2", 1)]
    assert read_pods(str(pods)) == [
        FleetPod("whole", 1, 1, 1, 0.0, 0.0, 50.0, False),
        FleetPod("two", 1, 1, 2, 0.0, 5.0, 55.0, False),
        FleetPod("half", 1, 1, 0, 0.5, 10.0, 100.0, True),
    ]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a,b\n1,2\n", "no column 'sn'"),
        (NODES + "n3,many,1,1,T4\n", "line 5"),
        (NODES + "n3,1\n", "line 5"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, text: str, wrong: str) -> None:
    file = tmp_path / "nodes.csv"
    file.write_text(text)
    with pytest.raises(TraceError, match=wrong):
        read_nodes(str(file))
    with pytest.raises(TraceError, match="nowhere"):
        read_nodes("/nowhere.csv")


def test_batch_pods_that_share_take_longer_and_others_get_less() -> None:
    pods = [a_pod("batch", 0.8), a_pod("service", 0.8, batch=False)]
    outcome = Replay([a_node(1)], pods, 2, parameters=FREE).run()
    batch, service = outcome.stays
    # Both get a half until the service's time is up at 100 s: 50 s of 80 s are done by then.
    assert service.left_s == 100
    assert service.done_s == pytest.approx(50)
    assert batch.left_s == pytest.approx(100 + 30 / 0.8)
    assert outcome.gpu_busy_s == pytest.approx(130)
    assert outcome.gpu_switching_s == 0


def test_a_replay_is_over_when_the_last_pod_leaves_not_when_it_would_have_with_neighbours() -> None:
    pods = [a_pod("long", 1.0), a_pod("short", 1.0, life_s=10)]
    outcome = Replay([a_node(1)], pods, 2, parameters=FREE).run()
    long, short = outcome.stays
    assert [short.left_s, long.left_s] == pytest.approx([20, 110])
    assert outcome.span_s == long.left_s
    assert outcome.gpu_busy_s == pytest.approx(outcome.span_s)


def test_small_shares_that_fit_together_cost_nothing() -> None:
    pods = [a_pod("a", 0.3), a_pod("b", 0.3), a_pod("c", 0.4)]
    outcome = Replay([a_node(1)], pods, 3).run()
    assert [stay.left_s for stay in outcome.stays] == [100, 100, 100]
    report = fleet_report(outcome)
    assert report.slowdown.max == pytest.approx(1)
    assert report.fairness == pytest.approx(1)


def test_who_finds_no_room_waits() -> None:
    pods = [
        a_pod("first", gpus=2, batch=False),
        a_pod("second", gpus=1, at_s=10, batch=False),
        a_pod("shares", 0.5, at_s=20),
    ]
    outcome = Replay([a_node(2)], pods, 4).run()
    assert [stay.placed_s for stay in outcome.stays] == [0, 100, 100]
    assert fleet_report(outcome).wait_s.max == 90


def test_one_who_can_never_be_placed_is_told() -> None:
    outcome = Replay([a_node(2)], [a_pod("greedy", gpus=3)], 4).run()
    report = fleet_report(outcome)
    assert (report.pods_never_placed, report.wait_s.count) == (1, 0)


def test_processors_and_host_memory_count_too() -> None:
    pods = [a_pod("a", 0.1), a_pod("b", 0.1)]
    outcome = Replay([a_node(1, cpu_milli=1)], pods, 10).run()
    assert [stay.placed_s for stay in outcome.stays] == [0, 100]


@pytest.mark.parametrize(("policy", "neighbours"), [("packed", [1, 1]), ("distributed", [0, 0])])
def test_policies(policy: str, neighbours: list[int]) -> None:
    pods = [a_pod("a", 0.1), a_pod("b", 0.1)]
    outcome = Replay([a_node(2)], pods, 4, policy).run()  # type: ignore[arg-type]
    assert [stay.neighbours_most for stay in outcome.stays] == neighbours


def test_whole_gpus_are_never_shared() -> None:
    pods = [a_pod("part", 0.1), *(a_pod(f"w{n}", gpus=1, batch=False) for n in range(2))]
    outcome = Replay([a_node(2)], pods, 10).run()
    assert [stay.placed_s for stay in outcome.stays] == [0, 0, 100]


@settings(max_examples=60)
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8))
def test_shares_are_max_min_fair(demands: list[float]) -> None:
    shares = shares_of(demands, SliceParameters(), 1.0)
    assert all(share <= demand + 1e-12 for share, demand in zip(shares, demands, strict=True))
    if sum(demands) <= 1:
        assert shares == demands
        return
    assert sum(shares) <= 1.0
    unsatisfied = [
        share for share, demand in zip(shares, demands, strict=True) if share < demand - 1e-12
    ]
    if unsatisfied:
        assert max(unsatisfied) == pytest.approx(min(unsatisfied))
        assert max(shares) == pytest.approx(max(unsatisfied)), "nobody has more than the hungry"


@pytest.mark.parametrize("tenant_count", [2, 3, 4, 5])
def test_flows_are_close_to_what_the_scheduler_does(tenant_count: int) -> None:
    """Within 9 points of the share that tenants get who are busy for a part of each second.

    It is worst (8.1) where the demands add up to one GPU, which the switches then do not leave.
    """
    for demands in combinations_with_replacement((0.1, 0.25, 0.5, 0.8, 0.95), tenant_count):
        for scheduled, share in zip(*_scheduled_and_flowing(demands), strict=True):
            assert scheduled == pytest.approx(share, abs=0.09), demands


def _scheduled_and_flowing(demands: Sequence[float]) -> tuple[list[float], Sequence[float]]:
    """Shares of a GPU in 100 s of slices, and as flows have them."""
    env = simpy.Environment()
    tenancy = Tenancy(env, TimeSlicing(), Memory(10**12), "GPU-a")
    tenants = []
    for pid, demand in enumerate(demands):
        workload = DutyCycle(period_ms=1000, share=demand)
        spec = TenantSpec(f"t{pid}", workload, MemoryUse(), 1.0)
        tenants.append(tenancy.start(pid, spec, Random(pid)))
    env.run(until=to_ns(100))
    tenancy.compute.catch_up()
    busy_ns = tenancy.compute.scheduler.usage.busy_ns
    scheduled = [busy_ns[tenant.context] / to_ns(100) for tenant in tenants]
    return scheduled, shares_of(demands, SliceParameters(), 1.0)


def test_a_spread_names_values_that_there_are() -> None:
    found = spread([float(value) for value in range(1, 101)])
    assert (found.min, found.p50, found.p95, found.p99, found.max) == (1, 50, 95, 99, 100)
    assert spread([3.0]).p99 == 3.0
    assert spread([]).mean is None


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes, pods = tmp_path / "nodes.csv", tmp_path / "pods.csv"
    nodes.write_text(NODES)
    pods.write_text(PODS)
    files = ["sim", "replay", "--pods", str(pods), "--nodes", str(nodes)]
    assert main(files) == 0
    assert "3 pods on 2 machines with 3 GPUs, 4 replicas of each" in capsys.readouterr().out
    assert main([*files, "--replicas", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["pods"], report["pods_of_parts"], report["replicas"]) == (3, 1, 2)
    assert report["pods_sharing"] == 0, "it never had a neighbour"
    assert main(["sim", "replay", "--pods", str(nodes), "--nodes", str(nodes)]) == 1
    assert "no column" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*files, "--replicas", "0"])
    capsys.readouterr()
    assert main([*files, "--replicas", "1,2", "--machines", "1,2", "--json"]) == 0
    several = json.loads(capsys.readouterr().out)
    assert [(one["gpus"], one["replicas"]) for one in several] == [(2, 1), (2, 2), (3, 1), (3, 2)]
    assert main([*files, "--replicas", "1,2"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("3 pods, policy packed")
    assert [line.split()[:3] for line in text.splitlines()[3:]] == [
        ["2", "3", "1"],
        ["2", "3", "2"],
    ]


def test_pods_that_found_no_room_come_first_and_count_as_nothing() -> None:
    pods = [a_pod("part", share=0.5), replace(a_pod("never", share=0.5), cpu_milli=10**9)]
    report = fleet_report(Replay([a_node(1)], pods, 4).run())
    assert report.pods_never_placed == 1
    assert report.fairness == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119, "119 s"), (3600, "60 min"), (9000, "2 h"), (1654130, "19 d")],
)
def test_waits_are_told_as_people_write_them(seconds: float, text: str) -> None:
    assert span(seconds) == text
