"""Failures by rate: how often, whom, and how they are mended."""

from __future__ import annotations

from itertools import islice
from random import Random
from typing import TYPE_CHECKING

import pytest

from sim.gpu.faults import Failures, gaps_s, victims_of
from sim.node.node import SimulatedNode
from sim.node.scenario import Scenario, ScenarioError, parse_scenario

if TYPE_CHECKING:
    from collections.abc import Mapping

XID = {"kind": "xid", "xid": 79}
DAY_S = 86_400.0


def failures(**keys: object) -> Failures:
    return Failures.model_validate({"what": XID, "mtbf_h": 100, **keys})


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"distribution": "weibull", "shape": 0.7},
        {"distribution": "weibull", "shape": 3},
    ],
)
def test_the_mean_is_what_was_asked_for(keys: Mapping[str, object]) -> None:
    gaps = list(islice(gaps_s(failures(**keys), 1.0, Random(1)), 20_000))
    assert sum(gaps) / len(gaps) == pytest.approx(360_000, rel=0.03)
    lemon = list(islice(gaps_s(failures(**keys), 10.0, Random(1)), 20_000))
    assert sum(lemon) / len(lemon) == pytest.approx(36_000, rel=0.03)


def test_a_shape_below_one_means_that_failures_come_in_crowds() -> None:
    early, exponential = (
        sum(gap < 36_000 for gap in islice(gaps_s(one, 1.0, Random(2)), 10_000))
        for one in (failures(distribution="weibull", shape=0.5), failures())
    )
    assert early > 1.5 * exponential


def test_who_is_hit_together() -> None:
    numa: list[int | None] = [0, 0, 1, 1]
    assert [one.indices for one in victims_of(failures(), numa, Random(1))] == [
        (0,), (1,), (2,), (3,)
    ]  # fmt: skip
    assert [one.indices for one in victims_of(failures(scope="host"), numa, Random(1))] == [
        (0, 1, 2, 3)
    ]
    assert [one.indices for one in victims_of(failures(scope="switch"), numa, Random(1))] == [
        (0, 1), (2, 3)
    ]  # fmt: skip


def test_lemons_are_few_and_fail_often() -> None:
    lemons = failures(lemons={"share": 0.1, "factor": 25})
    factors = [one.factor for one in victims_of(lemons, [None] * 5000, Random(4))]
    assert set(factors) == {1.0, 25.0}
    assert factors.count(25.0) == pytest.approx(500, rel=0.15)


def node(**keys: object) -> SimulatedNode:
    return SimulatedNode(
        Scenario.model_validate(
            {"gpus": [{"model": "a100-sxm4-80gb", "count": 4}], "failures": [keys]}
        ),
        lambda _kind, _facts: None,
    )


def faults(days: float, **keys: object) -> list[tuple[str, object]]:
    seen: list[tuple[str, object]] = []
    scenario = Scenario.model_validate(
        {"gpus": [{"model": "a100-sxm4-80gb", "count": 4}], "failures": [keys]}
    )
    SimulatedNode(scenario, lambda _kind, facts: seen.append((str(facts["uuid"]), facts["kind"]))
                  ).advance(days * DAY_S)  # fmt: skip
    return seen


def test_a_node_fails_as_often_as_its_rate_says() -> None:
    seen = faults(200, what={"kind": "xid", "xid": 31}, mtbf_h=24)
    assert len(seen) == pytest.approx(4 * 200, rel=0.12)
    assert len({uuid for uuid, _ in seen}) == 4


def test_a_repair_follows_each_failure() -> None:
    seen = faults(50, what=XID, mtbf_h=24, repair={"median_s": 600})
    by_gpu: dict[str, list[object]] = {}
    for uuid, kind in seen:
        by_gpu.setdefault(uuid, []).append(kind)
    for kinds in by_gpu.values():
        assert kinds[:6] == ["xid", "recover"] * 3, "what is being mended does not break"


def test_without_a_repair_a_gpu_stays_broken() -> None:
    broken = node(what=XID, mtbf_h=1)
    broken.advance(30 * DAY_S)
    assert all(gpu.lost for gpu in broken.present)


def test_a_host_takes_all_its_gpus_along() -> None:
    moments: dict[float, set[str]] = {}
    scenario = Scenario.model_validate(
        {
            "gpus": [{"model": "a100-sxm4-80gb", "count": 4}],
            "failures": [{"what": {"kind": "xid", "xid": 74}, "mtbf_h": 100, "scope": "host"}],
        }
    )
    holder: list[SimulatedNode] = []
    holder.append(
        SimulatedNode(
            scenario,
            lambda _kind, facts: moments.setdefault(holder[0].now_s, set()).add(str(facts["uuid"])),
        )
    )
    holder[0].advance(100 * DAY_S)
    assert len(moments) > 10
    assert all(len(uuids) == 4 for uuids in moments.values())


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("failures: [{what: {kind: xid, xid: 79}}]", "failures[0].mtbf_h"),
        ("failures: [{what: {kind: nonsense}, mtbf_h: 1}]", "failures[0].what"),
        ("failures: [{what: {kind: driver-down}, mtbf_h: 1}]", "failures[0].what"),
        ("failures: [{what: {kind: lost}, mtbf_h: 1, scope: rack}]", "failures[0].scope"),
        ("pods: [{name: a, arrivals_per_hour: 3, workload: {kind: closed-loop, busy_ms: 1}}]",
         "lifetime_s"),
        ("pods: [{name: a}]", "pods[0].workload"),
        ("tenants: [{name: a, gpu: 0, start_s: 3}]", "need a workload"),
        ("tenants: [{name: a, gpu: 0, mig: 0, workload: {kind: closed-loop, busy_ms: 1}}]",
         "tenants[0].mig"),
        (("tenants: [{name: a, gpu: 0, workload: {kind: closed-loop, busy_ms: 1}, "
         "memory: {grow_gib: 1}}]"), "most_gib"),
    ],
)  # fmt: skip
def test_a_wrong_scenario_is_refused_by_its_key(text: str, key: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(f"gpus: [{{model: l4}}]\n{text}", "test")
    assert key in str(caught.value)
