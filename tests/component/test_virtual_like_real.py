"""The stack in virtual time against the real daemon with a real kubelet stand-in: same story.

The same scenario and the same settings; what is compared is what the kubelet is told, in order.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import pytest

from gpuplugin.kubelet.deviceplugin import DevicePlugin
from gpuplugin.kubelet.registration import register
from gpuplugin.kubelet.snapshot import ServingPlan, snapshot_of
from gpuplugin.rpc import make_engine
from sim.gpu.faults import NodeFault
from sim.kubelet import Container, Kubelet, Phase, Pod
from sim.node.scenario import Scenario
from sim.virtual.kubelet import VirtualKubelet
from sim.virtual.run import VirtualRun
from tests.component.running import RESOURCE, settings_for
from tests.component.waiting import eventually
from tests.unit.builders import a_resource, uuid_of_gpu

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sim.gpu.faults import TimedFault
    from sim.kubelet import KubeletEvent, NodeView
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
            "faults": [
                {"at_s": at_s, "what": what, **({} if gpu is None else {"gpu": gpu})}
                for at_s, gpu, what in STORIES[story]
            ],
        }
    )


Changes = dict[str, list[tuple[str, str]]]
"""The health states that each GPU came into, with their causes, by UUID."""


def in_virtual_time(story: str, folder: Path) -> tuple[list[tuple[int, int]], Changes]:
    lines: list[str] = []
    settings = settings_for(folder, FLAGS)
    VirtualRun(scenario_of(story), settings, END_S, lines.append).run()
    facts = [json.loads(line) for line in lines]
    changes: Changes = {}
    for fact in facts:
        if fact["kind"] == "gpu-health":
            changes.setdefault(fact["uuid"], []).append((fact["state"], fact["cause"]))
    lists = [(fact["capacity"], fact["allocatable"]) for fact in facts if fact["kind"] == "list"]
    return lists, changes


def logged_changes(records: Iterable[logging.LogRecord]) -> Changes:
    changes: Changes = {}
    for record in records:
        facts = vars(record)
        if facts.get("event") == "gpu-health":
            changes.setdefault(facts["uuid"], []).append((facts["state"], facts["cause"]))
    return changes


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
def test_the_lists_and_the_changes_of_health_are_the_same(
    story: str,
    make_hardware: MakeHardware,
    start_plugin: StartPlugin,
    kubelet_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "gpuplugin.daemon.healthlog")
    expected, changes = in_virtual_time(story, kubelet_dir)
    hardware, told = make_hardware(3), Told()
    with Kubelet(kubelet_dir, listener=told):
        plugin = start_plugin(hardware.backend, flags=FLAGS)
        eventually(lambda: told.seen == expected[:1])
        hardware.wait_for_probes(1, 1)
        before_s = 0.0
        for fault in scenario_of(story).faults:
            due_s = now_s(hardware) + fault.at_s - before_s
            eventually(partial(is_past, hardware, due_s))
            inject(hardware, fault)
            before_s = fault.at_s
        several = any(len(one.indices(3)) > 1 for one in scenario_of(story).faults)
        eventually(lambda: is_told(told.seen, expected, several=several))
        hardware.wait_for_probes(1, 6)
        assert is_told(told.seen, expected, several=several), "and nothing more"
        assert logged_changes(caplog.records) == changes
        assert plugin.metric("gpuplugin_task_restarts_total") == 0
        plugin.stop()


class Both:
    """The stand-in over sockets and the one in virtual time, each with a plugin of its own.

    Both plugins have the same GPUs; whatever is done is done to both.
    """

    def __init__(self, kubelet: Kubelet, seed: int) -> None:
        resource = a_resource(2, 3, numa_nodes=2)
        self.snapshot = snapshot_of(resource, ServingPlan(policy="packed"))
        self.uuids = [uuid_of_gpu(0), uuid_of_gpu(1)]
        self.real, self.virtual = kubelet, VirtualKubelet(seed)
        self.plugins = [DevicePlugin(self.snapshot), DevicePlugin(self.snapshot)]
        self.pods: list[Pod] = []

    def set_health(self, *healthy: bool) -> None:
        by_uuid = dict(zip(self.uuids, healthy, strict=True))
        for plugin in self.plugins:
            plugin.update(self.snapshot, lambda uuid, _mig: by_uuid[uuid])
        self.virtual.listed(RESOURCE, self.plugins[1])
        eventually(lambda: self.real.view().devices.get(RESOURCE) == self.view().devices[RESOURCE])

    def create(self, pod: Pod) -> None:
        self.pods.append(pod)
        self.virtual.create(pod)
        self.sync_virtual()
        self.real.run_pod(pod)

    def delete(self, pod: Pod) -> None:
        self.pods.remove(pod)
        self.virtual.delete(pod, 0.0)
        self.sync_virtual()
        self.real.delete_pod(pod.key)

    def sync_virtual(self) -> None:
        """As the sync loop does: all that is Pending, in order, again while there is progress."""
        progress = [True]
        while any(progress):
            progress = [
                self.virtual.sync(pod, 0.0).phase is not Phase.PENDING
                for pod in self.pods
                if self.view().pods[pod.key].status.phase is Phase.PENDING
            ]

    def view(self) -> NodeView:
        return self.virtual.view(0.0)

    def agree(self) -> None:
        eventually(lambda: outcomes(self.real.view()) == outcomes(self.view()))


def outcomes(node: NodeView) -> dict[str, object]:
    """Amounts, and of every pod its status with the devices that it holds and what it was given."""
    return {
        "amounts": dict(node.amounts),
        **{key: view.status for key, view in node.pods.items()},
    }


@pytest.mark.parametrize("seed", range(6))
def test_both_kubelets_admit_and_refuse_the_same(kubelet_dir: Path, seed: int) -> None:
    random = Random(seed)
    socket = kubelet_dir / "device-plugins" / "differential.sock"
    with Kubelet(kubelet_dir, seed=f"kubelet/{seed}") as kubelet:
        both = Both(kubelet, seed)
        server = make_engine("fast").serve(socket, [both.plugins[0].service()])
        asyncio.run(register(socket.parent / "kubelet.sock", socket.name, RESOURCE, 5.0))
        both.set_health(True, True)
        for number in range(25):
            match random.choice(("create", "create", "delete", "health")):
                case "create":
                    both.create(a_pod(f"p{number}", random))
                case "delete" if both.pods:
                    both.delete(random.choice(both.pods))
                case "health":
                    both.set_health(random.random() < 0.7, random.random() < 0.7)
                    both.sync_virtual()
            both.agree()
        phases = {view.status.phase for view in both.view().pods.values()}
        server.stop(0.5)
    assert Phase.RUNNING in phases or not both.pods


def a_pod(name: str, random: Random) -> Pod:
    containers = tuple(
        Container(f"c{index}", {RESOURCE: random.choice((0, 1, 1, 1, 2, 4))})
        for index in range(random.choice((1, 1, 2)))
    )
    return Pod(name, containers, uid=f"uid-{name}", static=random.random() < 0.3)


def is_told(seen: list[tuple[int, int]], expected: list[tuple[int, int]], *, several: bool) -> bool:
    """Whether that is what the kubelet was told.

    A fault of several GPUs may come while the daemon is half through with probing them: then
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


def inject(hardware: Hardware, fault: TimedFault) -> None:
    with hardware.node.update() as model:
        if isinstance(fault.what, NodeFault):
            model.inject_node(fault.what)
            return
        for index in fault.indices(len(model.present)):
            model.inject(model.present[index], fault.what)
