"""What a time-slice level that is set through the hardware layer does to the tenants' latency."""

from __future__ import annotations

import pytest

from hal import NotSupported, TimeSliceLevel
from sim.gpu.scheduler import LEVEL_SLICES_NS, NS_PER_MS
from tests.unit.sim.nodes import Story

SHORT_MS = 0.5
SWITCH_MS = 0.220
"""At full occupancy."""

NEIGHBOURS = """
tenants:
- {name: busy-0, gpu: 0, workload: {kind: closed-loop, busy_ms: 5000}}
- {name: busy-1, gpu: 0, workload: {kind: closed-loop, busy_ms: 5000}}
- {name: short, gpu: 0, workload: {kind: open-loop, busy_ms: 0.5, per_s: 4}}
"""


def a_shared_gpu(model: str = "a100-sxm4-80gb", mig: str = "") -> Story:
    return Story(gpus=f"[{{model: {model}{mig}}}]", rest="" if mig else NEIGHBOURS)


def latencies_ms(story: Story, since: int = 0) -> list[float]:
    (short,) = (record for record in story.model.records if record.name == "short")
    return [latency / NS_PER_MS for latency in short.latency_ns[since:]]


@pytest.mark.parametrize("level", list(TimeSliceLevel))
def test_a_short_request_waits_as_long_as_the_slices_of_the_level_say(
    level: TimeSliceLevel,
) -> None:
    story = a_shared_gpu()
    story.hal.set_time_slice(story.uuids[0], level)
    story.at(120)
    seen_ms = latencies_ms(story)
    slice_ms = LEVEL_SLICES_NS[level] / NS_PER_MS
    assert len(seen_ms) > 400
    # It comes at any moment of a slice: what is left of it, and a whole one of the other neighbour.
    usual_ms = 1.5 * slice_ms + 2 * SWITCH_MS + SHORT_MS
    assert sum(seen_ms) / len(seen_ms) == pytest.approx(usual_ms, rel=0.1)
    # Now and then one comes just behind another one that is served.
    assert sorted(seen_ms)[int(len(seen_ms) * 0.9)] < 2 * (slice_ms + SWITCH_MS) + 2 * SHORT_MS


def test_tenants_that_run_feel_another_level_at_once() -> None:
    story = a_shared_gpu()
    story.at(60)
    before = latencies_ms(story)
    story.hal.set_time_slice(story.uuids[0], TimeSliceLevel.LONG)
    story.at(120)
    after = latencies_ms(story, len(before))
    assert max(before) < 10
    assert sum(after) / len(after) > 40
    story.hal.set_time_slice(story.uuids[0], TimeSliceLevel.DEFAULT)
    story.at(180)
    again = latencies_ms(story, len(before) + len(after) + 2)
    assert sum(again) / len(again) == pytest.approx(sum(before) / len(before), rel=0.1)


def test_a_level_is_of_one_gpu_and_stays_when_the_gpu_leaves_mig_mode() -> None:
    story = Story(gpus="[{model: a100-sxm4-80gb, count: 2}]", rest=NEIGHBOURS)
    story.hal.set_time_slice(story.uuids[1], TimeSliceLevel.LONG)
    story.at(30)
    assert max(latencies_ms(story)) < 10, "the level of another GPU"
    story.let("{kind: repartition, mig: [1g.10gb]}", "1")
    story.let("{kind: repartition, mig: null}", "1")
    (tenancy,) = story.model.gpus[story.uuids[1]].tenancies.values()
    scheduler = tenancy.compute.scheduler
    assert scheduler.parameters.slice_ns == LEVEL_SLICES_NS[TimeSliceLevel.LONG]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("model", "mig"), [("jetson-orin-nano-8gb", ""), ("a100-sxm4-80gb", ", mig: [1g.10gb]")]
)
def test_neither_tegra_nor_mig_has_levels(model: str, mig: str) -> None:
    story = a_shared_gpu(model, mig)
    with pytest.raises(NotSupported, match="time-slice level"):
        story.hal.set_time_slice(story.uuids[0], TimeSliceLevel.SHORT)
