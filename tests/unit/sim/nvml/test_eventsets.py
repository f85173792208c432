"""Event sets by themselves: whose they are, and what they keep."""

from __future__ import annotations

import pytest

from hal import XidError
from hal.nvml.api import Code
from sim.node.node import SimulatedNode
from sim.node.scenario import GpuGroup, Scenario
from sim.nvml.call import NvmlFailure
from sim.nvml.functions.events import XID, EventSets


@pytest.fixture
def node() -> SimulatedNode:
    return SimulatedNode(Scenario(gpus=[GpuGroup(model="t4", count=2)]))


def test_the_sets_of_a_process_end_with_it(node: SimulatedNode) -> None:
    sets = EventSets()
    own, others = sets.create(1), sets.create(2)
    sets.end(1)
    assert sets.take(others, node) is None
    with pytest.raises(NvmlFailure) as failure:
        sets.take(own, node)
    assert failure.value.code is Code.INVALID_ARGUMENT


def test_a_set_that_nobody_waits_for_keeps_the_newest_events(node: SimulatedNode) -> None:
    sets = EventSets()
    handle = sets.create(1)
    uuid, _ = node.gpus
    sets.register(handle, uuid, XID)
    for xid in range(10_000):
        sets.hear(XidError(uuid, xid))
    kept = []
    while (report := sets.take(handle, node)) is not None:
        kept.append(report.data)
    assert kept == list(range(10_000))[-len(kept) :]
    assert len(kept) < 10_000


def test_an_event_of_a_gpu_that_is_not_registered_is_not_told(node: SimulatedNode) -> None:
    sets = EventSets()
    handle = sets.create(1)
    uuid, other = node.gpus
    sets.register(handle, uuid, XID)
    sets.hear(XidError(other, 31))
    sets.hear(XidError(None, 31))
    assert sets.take(handle, node) is None
