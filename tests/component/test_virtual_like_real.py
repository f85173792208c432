"""The stack in virtual time against the real daemon with a real kubelet stand-in: same story.

The same scenario and the same settings; what is compared is what the kubelet is told, in order.
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING

import pytest

from sim.gpu.faults import NodeHappening
from sim.kubelet import Kubelet
from sim.node.scenario import Scenario
from sim.virtual.run import VirtualRun
from tests.component.running import RESOURCE, settings_for
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from sim.gpu.faults import TimedHappening
    from sim.kubelet import KubeletEvent
    from tests.component.conftest import MakeHardware, StartPlugin
    from tests.component.running import Hardware

FLAGS = {
    "--health-quiet-period": "150ms",
    "--health-probe-interval": "50ms",
    "--health-blind-after": "200ms",
}
END_S = 2.0

STORIES: dict[str, list[tuple[float, int | str | None, dict[str, object]]]] = {
    "reset": [(0.2, 1, {"kind": "xid", "xid": 95}), (0.5, 1, {"kind": "recover"})],
    "off the bus": [(0.2, 2, {"kind": "xid", "xid": 79}), (0.5, 2, {"kind": "recover"})],
    "application": [(0.2, 0, {"kind": "xid", "xid": 31})],
    "by itself": [(0.2, 0, {"kind": "xid", "xid": 74})],
    "no event tells": [
        (0.2, 1, {"kind": "row-remap", "failed": True}), (0.5, 1, {"kind": "recover"})
    ],
    "two": [(0.2, 0, {"kind": "lost"}), (0.3, 1, {"kind": "xid", "xid": 46}),
            (0.5, 0, {"kind": "recover"}), (0.7, 1, {"kind": "recover"})],
    "all at once": [(0.2, "all", {"kind": "xid", "xid": 46}), (0.5, "all", {"kind": "recover"})],
    "driver": [(0.2, None, {"kind": "driver-down"}), (0.7, None, {"kind": "driver-up"})],
    "replaced": [(0.2, 2, {"kind": "replace"})],
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


class Told:
    """Every list that the kubelet was told, as (capacity, allocatable), without repetitions."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, happened: KubeletEvent) -> None:
        found = re.search(rf"{RESOURCE}: (\d+) healthy, (\d+) not", happened.text)
        if happened.kind == "list" and found:
            healthy, unhealthy = map(int, found.groups())
            told = (healthy + unhealthy, healthy)
            if self.seen[-1:] != [told]:
                self.seen.append(told)


@pytest.mark.parametrize("story", STORIES)
def test_the_kubelet_is_told_the_same(
    story: str, make_hardware: MakeHardware, start_plugin: StartPlugin, kubelet_dir: Path
) -> None:
    expected = in_virtual_time(story, kubelet_dir)
    hardware, told = make_hardware(3), Told()
    with Kubelet(kubelet_dir, listener=told):
        plugin = start_plugin(hardware.backend, flags=FLAGS)
        eventually(lambda: told.seen == expected[:1])
        hardware.wait_for_probes(1, 1)
        before_s = 0.0
        for happening in scenario_of(story).happenings:
            due_s = now_s(hardware) + happening.at_s - before_s
            eventually(partial(is_past, hardware, due_s))
            befall(hardware, happening)
            before_s = happening.at_s
        several = any(len(one.indices(3)) > 1 for one in scenario_of(story).happenings)
        eventually(lambda: is_told(told.seen, expected, several=several))
        hardware.wait_for_probes(1, 6)
        assert is_told(told.seen, expected, several=several), "and nothing more"
        assert plugin.metric("gpuplugin_task_restarts_total") == 0
        plugin.stop()


def is_told(seen: list[tuple[int, int]], expected: list[tuple[int, int]], *, several: bool) -> bool:
    """Whether that is what the kubelet was told.

    A happening to several GPUs may come while the daemon is half through with probing them: then
    what is one list in virtual time may be two, the first of them between its neighbours.
    """
    if not several:
        return seen == expected
    left = list(expected)
    for position, one in enumerate(seen):
        if left and one == left[0]:
            del left[0]
            continue
        before = seen[position - 1]
        if not left or not min(before, left[0]) < one < max(before, left[0]):
            return False
    return not left


def is_past(hardware: Hardware, due_s: float) -> bool:
    return now_s(hardware) >= due_s


def now_s(hardware: Hardware) -> float:
    with hardware.node.update() as model:
        return model.now_s


def befall(hardware: Hardware, happening: TimedHappening) -> None:
    with hardware.node.update() as model:
        if isinstance(happening.what, NodeHappening):
            model.befall_node(happening.what)
            return
        for index in happening.indices(len(model.present)):
            model.befall(model.present[index], happening.what)
