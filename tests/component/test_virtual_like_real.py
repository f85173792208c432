"""The stack in virtual time against the real daemon with a real kubelet stand-in: same story.

The same scenario and the same settings; what is compared is what the kubelet is told, in order.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from sim.backend import SimBackend
from sim.node import SimulatedNode
from sim.realtime import RealTimeNode
from sim.scenario import Scenario
from sim.virtual.run import VirtualRun
from tests.component.running import RESOURCE, settings_for
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from pathlib import Path

    from sim.kubelet import Kubelet, NodeView
    from tests.component.conftest import StartPlugin

FLAGS = {
    "--health-quiet-period": "150ms",
    "--health-probe-interval": "50ms",
    "--health-blind-after": "200ms",
}
END_S = 1.5

STORIES: dict[str, list[tuple[float, int | str | None, dict[str, object]]]] = {
    "reset": [(0.5, 1, {"kind": "xid", "xid": 95}), (0.8, 1, {"kind": "recover"})],
    "off the bus": [(0.5, 2, {"kind": "xid", "xid": 79}), (0.8, 2, {"kind": "recover"})],
    "application": [(0.5, 0, {"kind": "xid", "xid": 31})],
    "by itself": [(0.5, 0, {"kind": "xid", "xid": 74})],
    "no event tells": [
        (0.5, 1, {"kind": "row-remap", "failed": True}), (0.8, 1, {"kind": "recover"})
    ],
    "two": [(0.5, 0, {"kind": "lost"}), (0.6, 1, {"kind": "xid", "xid": 46}),
            (0.8, 0, {"kind": "recover"}), (1.0, 1, {"kind": "recover"})],
    "all at once": [(0.5, "all", {"kind": "xid", "xid": 46}), (0.8, "all", {"kind": "recover"})],
    "driver": [(0.5, None, {"kind": "driver-down"}), (1.0, None, {"kind": "driver-up"})],
    "replaced": [(0.5, 2, {"kind": "replace"})],
}  # fmt: skip


def scenario_of(story: str) -> Scenario:
    return Scenario.model_validate(
        {
            "gpus": [{"model": "h100-sxm5-80gb", "count": 3}],
            "happenings": [
                {"at_s": at_s, "what": what, **({} if gpu is None else {"gpu": gpu})}
                for at_s, gpu, what in STORIES[story]
            ],
        }
    )


def in_virtual_time(story: str, folder: Path) -> list[tuple[int, int]]:
    lines: list[str] = []
    settings = settings_for(folder, FLAGS)
    VirtualRun(scenario_of(story), settings, END_S, lines.append).run()
    facts = [json.loads(line) for line in lines]
    return [(fact["capacity"], fact["allocatable"]) for fact in facts if fact["kind"] == "list"]


@pytest.mark.parametrize("story", STORIES)
def test_the_kubelet_is_told_the_same(
    story: str, kubelet: Kubelet, start_plugin: StartPlugin, kubelet_dir: Path
) -> None:
    expected = in_virtual_time(story, kubelet_dir)
    node = RealTimeNode(SimulatedNode(scenario_of(story)))
    seen: list[tuple[int, int]] = []

    def note(view: NodeView) -> bool:
        amount = view.amounts.get(RESOURCE)
        if amount and (amount.capacity or amount.allocatable):
            told = (amount.capacity, amount.allocatable)
            if not seen or seen[-1] != told:
                seen.append(told)
        return len(seen) >= len(expected)

    try:
        plugin = start_plugin(SimBackend(node), flags=FLAGS)
        kubelet.wait_until(note, DEADLINE_S)
        eventually(lambda: finished(node))
        kubelet.wait_until(lambda view: note(view) and seen == expected, DEADLINE_S)
        assert plugin.metric("gpuplugin_task_restarts_total") == 0
    finally:
        node.stop()
    assert seen == expected


def finished(node: RealTimeNode) -> bool:
    """True when the story is over, and what follows from it has had its time."""
    with node.present() as model:
        return model.now_s > END_S
