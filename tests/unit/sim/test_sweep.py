"""Sweeps: which runs they make, and what their figures say."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.node.scenario import Scenario, load_scenario
from sim.study.report import report_of
from sim.study.sweep import (
    Setting,
    WrongSweep,
    combinations,
    estimate,
    figures_of,
    jobs,
    parsed_setting,
    run_job,
    sweep_report,
)
from sim.virtual.kubelet import PodNotes
from tests.unit.sim.outcomes import outcome, record


def test_a_setting_has_values_as_yaml_writes_them() -> None:
    assert parsed_setting("replicas=2,4, 10") == Setting("replicas", (2, 4, 10))
    assert parsed_setting("a.b=0.5,true,word") == Setting("a.b", (0.5, True, "word"))


@pytest.mark.parametrize("text", ["replicas", "=1", "replicas=", "replicas=1,,2"])
def test_what_is_no_setting(text: str) -> None:
    with pytest.raises(WrongSweep, match="write KEY=VALUE"):
        parsed_setting(text)


def test_every_combination_comes_once() -> None:
    found = combinations([Setting("a", (1, 2)), Setting("b", ("x", "y"))])
    assert found == [
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"},
    ]  # fmt: skip
    with pytest.raises(WrongSweep, match="two --set"):
        combinations([Setting("a", (1,)), Setting("a", (2,))])


def test_settings_reach_the_scenario_and_the_configuration() -> None:
    base = load_scenario("noisy-neighbour")
    config = {
        "version": "v1",
        "sharing": {
            "timeSlicing": {
                "failRequestsGreaterThanOne": False,
                "resources": [
                    {"name": "nvidia.com/gpu", "replicas": 7},
                    {"name": "nvidia.com/mig-1g.5gb", "replicas": 3},
                ],
            }
        },
    }
    base = base.model_copy(update={"config": config})
    chosen: list[dict[str, str | int | float | bool | None]] = [
        {
            "replicas": 4, "mechanism": "mps", "pods.trainer.occupancy": 0.5, "gpus.0.cooling": 0.9,
            "policy": "packed",
        }
    ]  # fmt: skip
    (one, other) = jobs(base, chosen, [5, 6], 60.0)
    scenario = Scenario.model_validate_json(one.scenario)
    assert (scenario.seed, json.loads(other.scenario)["seed"]) == (5, 6)
    assert (one.policy, one.until_s) == ("packed", 60.0)
    assert scenario.gpus[0].mechanism == "mps"
    assert scenario.gpus[0].cooling == 0.9
    assert [pod.occupancy for pod in scenario.pods] == [0.4, 0.5]
    assert scenario.config is not None
    sharing = scenario.config["sharing"]
    assert sharing == {
        "timeSlicing": {
            "failRequestsGreaterThanOne": False,
            "resources": [
                {"name": "nvidia.com/gpu", "replicas": 4},
                {"name": "nvidia.com/mig-1g.5gb", "replicas": 3},
            ],
        }
    }


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"pods.nobody.count": 1}, "no such key; take one of replicas, policy"),
        ({"gpus.9.cooling": 1}, "no such key"),
        ({"description.x": 1}, "no such key"),
        ({"pods.api.colour": 1}, "colour: Extra inputs"),
        ({"mechanism": "magic"}, "mechanism: Input should be"),
        ({"replicas": 0}, "replicas=0: .*replicas"),
        ({"policy": "best"}, "policy=best: .*best"),
        ({"replicas": 10**7}, "replicas"),
    ],
)
def test_what_cannot_be_set_is_said_before_anything_runs(
    setting: dict[str, str | int | float | bool | None], said: str
) -> None:
    with pytest.raises(WrongSweep, match=said):
        jobs(load_scenario("noisy-neighbour"), [setting], [1], 60.0)


def test_there_is_a_bound_on_runs() -> None:
    with pytest.raises(WrongSweep, match="are more than 10000"):
        jobs(load_scenario("noisy-neighbour"), [{}] * 101, list(range(100)), 60.0)


def test_a_job_gives_the_same_figures_each_time() -> None:
    (job, other) = jobs(load_scenario("noisy-neighbour"), [{"replicas": 2}], [1, 2], 5.0)
    assert run_job(job) == run_job(job) != run_job(other)


def test_figures_are_of_who_suffered_most_and_know_who_got_nothing() -> None:
    done = outcome(
        record("a-0", latency_ms=[2.0] * 20, work_ms=1, asked=1),
        record("b-0", latency_ms=[8.0] * 20, work_ms=2, asked=1),
    )
    done.pods = [PodNotes("a-0", 0, 7 * 10**9), PodNotes("c-0", 0)]
    found = figures_of(report_of(done))
    assert (found.deprived, found.slowdown, found.slowdown_p95) == (1, 4.0, 4.0)
    assert (found.waited, found.wait_max_s, found.served) == (1, 7.0, 40)


def test_an_estimate_is_the_mean_and_the_interval_of_students_t() -> None:
    """12.706 and 2.776 are the quantiles of one and four degrees of freedom."""
    two = estimate([1.0, 3.0])
    assert two is not None
    assert two.high is not None
    assert two.mean == 2.0
    assert two.high - two.mean == pytest.approx(12.706)
    five = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert five is not None
    assert five.low is not None
    assert five.mean - five.low == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5))
    one = estimate([None, 4.0])
    assert one is not None
    assert (one.mean, one.low) == (4.0, None)
    assert estimate([None]) is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60))
def test_an_interval_has_the_mean_in_its_middle(values: list[float]) -> None:
    found = estimate(values)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.mean <= found.high
    assert found.mean - found.low == pytest.approx(found.high - found.mean, rel=1e-6, abs=1e-6)


def test_runs_belong_to_their_combination() -> None:
    scenario = load_scenario("noisy-neighbour")
    chosen: list[dict[str, str | int | float | bool | None]] = [{"replicas": 2}, {"replicas": 4}]
    base = figures_of(report_of(outcome(record("a-0", latency_ms=[1.0], asked=1))))
    found = [base.model_copy(update={"ooms": float(number)}) for number in range(6)]
    report = sweep_report(scenario, chosen, [1, 2, 3], 60.0, found)
    assert [[run.ooms for run in one.runs] for one in report.combinations] == [
        [0, 1, 2], [3, 4, 5],
    ]  # fmt: skip
    means = [one.figures["ooms"] for one in report.combinations]
    assert [one.mean for one in means if one is not None] == [1.0, 4.0]
