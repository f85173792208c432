"""Pods of a scenario at work in real time: arrival, refusal, restart, lifetime, deletion."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from sim.kubelet import Phase
from sim.kubelet.pods import simple_pod
from sim.node.podlife import Backoff
from sim.node.podwork import PodWork, scenario_work
from tests.component.running import RESOURCE
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sim.kubelet import Kubelet
    from tests.component.conftest import MakeHardware, StartPlugin
    from tests.component.running import Hardware

SHORT = Backoff(first_s=0.05, longest_s=0.2, steady_s=60.0)
APPLICATION_ERROR = 31


def a_group(**keys: object) -> dict[str, object]:
    return {"name": "p", "workload": {"kind": "closed-loop", "busy_ms": 5}, **keys}


@contextmanager
def at_work(
    group: dict[str, object],
    kubelet: Kubelet,
    make_hardware: MakeHardware,
    start_plugin: StartPlugin,
    host: Path,
) -> Iterator[Hardware]:
    """A node of one GPU with ten replicas, whose scenario has one group of pods."""
    hardware = make_hardware(1, pods=[group])
    start_plugin(hardware.backend)
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 10, 20)
    scenario = hardware.scenario
    work = PodWork(kubelet, hardware.node, host, scenario_work(scenario), scenario, SHORT)
    work.start()
    try:
        yield hardware
    finally:
        work.stop()
    assert list(work.proc.iterdir()) == list(work.pod_logs.iterdir()) == []


def started(hardware: Hardware, name: str = "p-0") -> int:
    """How often the container of a pod was started."""
    with hardware.node.read() as node:
        return sum(record.name == name for record in node.records)


def ended(hardware: Hardware) -> dict[str, tuple[float, float]]:
    """When the containers that ended began and ended, in seconds, by pod."""
    with hardware.node.read() as node:
        return {
            record.name: (record.started_ns / 1e9, record.ended_ns / 1e9)
            for record in node.records
            if record.ended_ns is not None
        }


def was_started(hardware: Hardware, times: int) -> bool:
    return started(hardware) == times


def running(hardware: Hardware) -> set[str]:
    with hardware.node.read() as node:
        return {process.name for process in node.present[0].processes()}


def test_a_lifetime_begins_when_the_pod_runs(
    kubelet: Kubelet, make_hardware: MakeHardware, start_plugin: StartPlugin, tmp_path: Path
) -> None:
    group = a_group(count=12, lifetime_s=1.0)
    with at_work(group, kubelet, make_hardware, start_plugin, tmp_path) as hardware:
        names = {f"p-{number}" for number in range(12)}
        eventually(lambda: ended(hardware).keys() == names)
        eventually(lambda: not kubelet.view().pods)
        lives = ended(hardware)
        assert {started(hardware, name) for name in names} == {1}
        late = [lives["p-10"], lives["p-11"]]
        assert min(began_s for began_s, _ in late) > min(ended_s for _, ended_s in lives.values())
        assert all(ended_s - began_s > 0.3 for began_s, ended_s in late), "they waited for a second"


def test_a_pod_whose_files_cannot_be_written_works_and_stops_no_other(
    kubelet: Kubelet, make_hardware: MakeHardware, start_plugin: StartPlugin, tmp_path: Path
) -> None:
    """Of namespace, name and UID a folder is made, whose name may have 255 bytes."""
    long = f"p-{'0' * 240}"
    with at_work(a_group(), kubelet, make_hardware, start_plugin, tmp_path) as hardware:
        eventually(lambda: running(hardware) == {"p-0"})
        kubelet.create_pod(simple_pod(long, {RESOURCE: 1}))
        eventually(lambda: running(hardware) == {"p-0", long})
        kubelet.delete_pod("p-0")
        eventually(lambda: running(hardware) == {long})


def test_a_container_that_ended_is_started_again(
    kubelet: Kubelet, make_hardware: MakeHardware, start_plugin: StartPlugin, tmp_path: Path
) -> None:
    with at_work(a_group(), kubelet, make_hardware, start_plugin, tmp_path) as hardware:
        for starts in (1, 2, 3):
            eventually(partial(was_started, hardware, starts))
            eventually(lambda: running(hardware) == {"p-0"})
            hardware.xid(0, APPLICATION_ERROR)
        assert kubelet.view().pods["default/p-0"].status.phase is Phase.RUNNING


def test_without_restart_the_pod_is_deleted_with_its_container(
    kubelet: Kubelet, make_hardware: MakeHardware, start_plugin: StartPlugin, tmp_path: Path
) -> None:
    group = a_group(restart=False)
    with at_work(group, kubelet, make_hardware, start_plugin, tmp_path) as hardware:
        eventually(lambda: running(hardware) == {"p-0"})
        hardware.xid(0, APPLICATION_ERROR)
        eventually(lambda: not kubelet.view().pods)
        assert started(hardware) == 1


def test_a_pod_that_was_deleted_by_hand_stays_deleted(
    kubelet: Kubelet, make_hardware: MakeHardware, start_plugin: StartPlugin, tmp_path: Path
) -> None:
    with at_work(a_group(count=2), kubelet, make_hardware, start_plugin, tmp_path) as hardware:
        eventually(lambda: running(hardware) == {"p-0", "p-1"})
        kubelet.delete_pod("p-0")
        eventually(lambda: running(hardware) == {"p-1"})
        assert set(kubelet.view().pods) == {"default/p-1"}


def test_a_refused_pod_is_made_anew(
    kubelet: Kubelet, make_hardware: MakeHardware, start_plugin: StartPlugin, tmp_path: Path
) -> None:
    """The configuration refuses more than one replica."""
    seen: set[str] = set()

    def uids() -> int:
        seen.update(view.pod.uid for view in kubelet.view().pods.values())
        return len(seen)

    group = a_group(devices=2)
    with at_work(group, kubelet, make_hardware, start_plugin, tmp_path) as hardware:
        eventually(lambda: uids() >= 3)
        assert started(hardware) == 0
        kubelet.delete_pod("p-0")
        eventually(lambda: not kubelet.view().pods)


def test_a_refused_pod_that_was_made_by_hand_is_left_alone(
    kubelet: Kubelet, make_hardware: MakeHardware, start_plugin: StartPlugin, tmp_path: Path
) -> None:
    """Nobody makes another in its place, while the scenario's own are made anew beside it."""
    group = a_group(devices=2)
    with at_work(group, kubelet, make_hardware, start_plugin, tmp_path):
        kubelet.create_pod(simple_pod("q-0", {RESOURCE: 2}))
        eventually(lambda: len(uids(kubelet)) == 2)
        first = uids(kubelet)
        eventually(lambda: first["default/p-0"] not in uids(kubelet).values())
        left = kubelet.view().pods["default/q-0"]
        assert (left.pod.uid, left.status.phase) == (first["default/q-0"], Phase.FAILED)
        kubelet.delete_pod("q-0")
        eventually(lambda: set(kubelet.view().pods) <= {"default/p-0"})


def uids(kubelet: Kubelet) -> dict[str, str]:
    return {name: view.pod.uid for name, view in kubelet.view().pods.items()}
