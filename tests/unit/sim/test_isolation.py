"""What tenants of one GPU do to each other, by the mechanism: faults, and memory that overflows."""

from __future__ import annotations

import pytest

from tests.unit.sim.nodes import Story

WORK = "workload: {kind: closed-loop, busy_ms: 10}, occupancy: 0.2"


def story(group: str, *names: str, memory: str = "") -> Story:
    tenants = "".join(f"- {{name: {name}, gpu: 0, {WORK}{memory}}}\n" for name in names)
    return Story(gpus=f"[{{model: a100-sxm4-80gb, {group}}}]", rest=f"tenants:\n{tenants}")


def left(story: Story) -> int:
    return len(story.hal.processes(story.uuids[0]))


@pytest.mark.parametrize(
    ("mechanism", "survivors"), [("time-slicing", 3), ("exclusive", 3), ("mps", 0)]
)
@pytest.mark.parametrize("code", [13, 31, 68])
def test_an_application_error_ends_one_tenant_but_under_mps_all_of_them(
    mechanism: str, survivors: int, code: int
) -> None:
    shared = story(f"mechanism: {mechanism}", *"abcd")
    shared.at(1)
    assert left(shared) == 4
    shared.let(f"{{kind: xid, xid: {code}}}")
    assert left(shared) == survivors
    assert shared.hal.probe(shared.uuids[0]).clean, "the GPU itself is as good as before"


@pytest.mark.parametrize("mechanism", ["time-slicing", "exclusive", "mps"])
@pytest.mark.parametrize("code", [79, 95, 119])
def test_an_error_of_the_gpu_ends_all_tenants_whatever_the_mechanism(
    mechanism: str, code: int
) -> None:
    shared = story(f"mechanism: {mechanism}", *"abcd")
    shared.at(1)
    shared.let(f"{{kind: xid, xid: {code}}}")
    assert {record.ended for record in shared.model.records} <= {f"xid {code}", "GPU lost"}
    assert not shared.hal.probe(shared.uuids[0]).clean


def test_managed_memory_overflows_and_slows_everybody_down_as_was_published() -> None:
    memory = ", memory: {start_gib: 79.7, context_mib: 0}"
    alone = story("oversubscribe: true", "a", memory=memory)
    both = story("oversubscribe: true", "a", "b", memory=memory)
    refused = story("oversubscribe: false", "a", "b", memory=", memory: {start_gib: 60}")
    for one in (alone, both, refused):
        one.at(60)
    (fast,) = (len(record.latency_ns) for record in alone.model.records)
    slow = [len(record.latency_ns) for record in both.model.records]
    # Twelve times was measured for twice the memory; here each has half of the GPU, too.
    assert fast / slow[0] == pytest.approx(2 * 12, rel=0.15)
    assert slow[0] == pytest.approx(slow[1], abs=2)
    assert [record.ended for record in refused.model.records] == ["", "oom"]
