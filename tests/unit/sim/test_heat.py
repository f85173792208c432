"""Heat that nobody injected: a blocked airflow slows a GPU down, or ends it, by itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hal import GpuDisappeared, ThrottleReason
from sim.gpu.physics import Physics
from sim.gpu.profiles import load_profile, model_names
from sim.node.scenario import load_scenario, parse_scenario
from sim.virtual.run import VirtualRun
from sim.virtual.settings import settings_for
from tests.unit.sim.nodes import Story

CONSTANT = "tenants: [{name: one, gpu: 0, utilization: 1.0}]"
COMPETING = "tenants: [{name: one, gpu: 0, workload: {kind: training, step_ms: 200}}]"


def blocked(cooling: float) -> str:
    return f"[{{model: a100-sxm4-80gb, cooling: {cooling}}}]"


@pytest.mark.parametrize("tenants", [CONSTANT, COMPETING])
def test_a_gpu_that_reaches_its_shutdown_temperature_shuts_itself_down(tenants: str) -> None:
    story = Story(gpus=blocked(0.3), rest=tenants)
    (uuid,) = story.uuids
    warmest_c, now_s = 0.0, 0.0
    while not story.hal.probe(uuid).thermal_shutdown:
        reading = story.hal.telemetry(uuid)
        assert reading.temperature_c is not None
        assert reading.temperature_c <= 92, "it is shut down at that moment, not some time after it"
        assert story.hal.processes(uuid)
        warmest_c = max(warmest_c, reading.temperature_c)
        now_s += 0.05
        assert now_s < 60
        story.at(now_s)
    assert warmest_c > 91
    story.at(now_s + 0.2)  # utilisation is that of 100 ms at least
    hot = story.hal.telemetry(uuid)
    assert (hot.temperature_c, hot.utilization, story.hal.processes(uuid)) == (92, 0, ())
    assert hot.throttle_reasons is ThrottleReason.THERMAL_HARDWARE
    story.at(now_s + 2)
    assert story.hal.wait_events(0) == (GpuDisappeared(uuid),)


def test_clocks_that_can_bear_the_heat_keep_it_from_shutting_down() -> None:
    story = Story(gpus=blocked(0.6), rest=COMPETING)
    (uuid,) = story.uuids
    slowest = 1.0
    for now_s in range(5, 1800, 5):
        story.at(now_s)
        assert story.hal.probe(uuid).clean
        slowest = min(slowest, story.model.gpus[uuid].physics.clock_ppm / 1e6)
    assert 0.5 < slowest < 1


def test_who_is_idle_does_not_get_warm_in_any_airflow() -> None:
    story = Story(gpus=blocked(0.3), rest="")
    story.at(3600)
    assert story.hal.probe(story.uuids[0]).clean


@pytest.mark.parametrize("way_back", ["recover", "replace"])
def test_a_gpu_that_is_back_in_the_same_airflow_does_it_again(way_back: str) -> None:
    rest = f"""
pods: [{{name: p, workload: {{kind: training, step_ms: 200}}}}]
faults: [{{at_s: 100, gpu: 0, what: {{kind: {way_back}}}}}]
"""
    facts = facts_of(f"gpus: {blocked(0.3)}\n{rest}")
    shut_down = [fact["t_ns"] for fact in facts if fact.get("what") == "thermal-shutdown"]
    assert shut_down[0] < 30e9
    if way_back == "recover":
        assert len(shut_down) == 2
        assert shut_down[1] > 130e9, "first it has to be Healthy again, then warm"
    else:
        assert len(shut_down) == 1, "the pod holds a device of the GPU that is gone"


def test_the_plugin_in_virtual_time_sees_the_shutdown_and_the_loss() -> None:
    rest = "pods: [{name: p, workload: {kind: training, step_ms: 200}}]"
    facts = facts_of(f"gpus: {blocked(0.3)}\n{rest}")
    assert [fact["why"] for fact in facts if fact["kind"] == "tenant-ended"] == ["thermal shutdown"]
    health = [fact for fact in facts if fact["kind"] == "gpu-health"]
    assert health[0]["state"] == "Unhealthy"
    assert health[0]["cause"] in {"thermal", "lost"}
    assert [fact["allocatable"] for fact in facts if fact["kind"] == "list"] == [10, 0]


def test_the_shipped_scenario_has_a_well_cooled_a_slow_and_a_dying_gpu() -> None:
    scenario = load_scenario("overheating")
    outcome = VirtualRun(scenario, settings_for(scenario, {}, {}, None), 600).run()
    slowest = [min(sample.clock_ppm for sample in gpu.samples) for gpu in outcome.gpus]
    lost = [any(change.uuid == gpu.uuid for change in outcome.changes) for gpu in outcome.gpus]
    assert slowest[:2] == [1_000_000, 1_000_000]
    assert slowest[2] < 900_000
    assert lost == [False, False, False, True]
    assert outcome.thermal_shutdowns == {outcome.gpus[3].uuid: 2}, "again after the reset"
    by_gpu = {record.gpu: len(record.latency_ns) for record in outcome.tenants if not record.ended}
    well, slow = by_gpu[outcome.gpus[0].uuid], by_gpu[outcome.gpus[2].uuid]
    assert slow < 0.95 * well, "slow clocks slow the tenant down"


@given(
    st.sampled_from(model_names()),
    st.floats(0.2, 0.6),
    st.floats(0.3, 1.0),
    st.floats(0, 200),
)
def test_the_moment_of_the_shutdown_is_reckoned_exactly(
    model: str, cooling: float, load: float, warm_s: float
) -> None:
    physics = Physics(load_profile(model), cooling)
    physics.settle(load / 2, warm_s)
    assume(not physics.too_hot)
    in_s = physics.too_hot_in_s(load)
    assume(0.01 < in_s < 3600)
    physics.settle(load, warm_s + in_s - 0.005)
    assert not physics.too_hot
    physics.settle(load, warm_s + in_s)
    assert physics.too_hot


def facts_of(text: str) -> list[dict[str, Any]]:
    """The event log of 300 s in virtual time."""
    scenario = parse_scenario(text, "test")
    lines: list[str] = []
    VirtualRun(scenario, settings_for(scenario, {}, {}, None), 300, lines.append).run()
    return [json.loads(line) for line in lines]
