"""A node of a fleet: pods and faults in its own virtual time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from gpuplugin.core.nodecondition import Condition
from sim.fleet.node import POD_START_S, FleetNode
from sim.fleet.objects import (
    Machine,
    PodAddresses,
    node_body,
    node_conditions,
    pod_address,
    taints,
)
from sim.fleet.pods import AskedPod, asked_pod, pod_status
from sim.gpu.faults import Recovery, XidFault
from sim.node.scenario import parse_scenario
from sim.virtual.settings import settings_for, with_replicas

RESOURCE = "nvidia.com/gpu"
USUAL = Machine()
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SCENARIO = """
gpus: [{model: l4, count: 2}]
pods:
- name: greedy
  workload: {kind: training, step_ms: 100, pause_ms: 20}
  memory: {start_gib: 40}
"""


def a_node(
    name: str = "sim-0",
    replicas: int = 2,
    machine: Machine = USUAL,
    addresses: PodAddresses | None = None,
) -> FleetNode:
    scenario = parse_scenario(SCENARIO, "test")
    scenario = scenario.model_copy(update={"config": with_replicas(None, replicas)})
    settings = settings_for(scenario, {}, {}, None)
    return FleetNode(name, 0, scenario, settings, machine, addresses or PodAddresses())


def a_pod(name: str, gpus: int = 1, cpu: str = "1", **more: Any) -> AskedPod:
    limits = {RESOURCE: str(gpus)} if gpus else {}
    metadata = {"name": name, "namespace": "team", "uid": f"uid-{name}"}
    spec = {
        "nodeName": "sim-0",
        "containers": [{"name": "main", "resources": {"limits": limits, "requests": {"cpu": cpu}}}],
        "restartPolicy": more.pop("restart_policy", "Always"),
    }
    metadata["annotations"] = {f"gpuplugin.dev/{key}": value for key, value in more.items()}  # type: ignore[assignment]
    return asked_pod({"metadata": metadata, "spec": spec}, NOW)


def phase(node: FleetNode, pod: AskedPod) -> str:
    return node.pods[pod.uid][1].phase


def devices(node: FleetNode, pod: AskedPod) -> tuple[str, ...]:
    return node.pods[pod.uid][1].grants[0].device_ids


def test_a_fault_takes_devices_out_of_allocatable_and_their_pods_are_told() -> None:
    node = a_node()
    pod = a_pod("one")
    node.bind(pod, 1.0)
    (device,) = devices(node, pod)
    gpu = node.model.gpu(device.partition("::")[0])
    node.dirty = False
    node.changed.clear()

    node.model.inject(gpu, XidFault(xid=79))
    node.advance(5.0)

    amount = node.amounts()[RESOURCE]
    assert (amount.capacity, amount.allocatable) == (4, 2)
    assert node.dirty
    assert node.changed == {pod.uid}
    assert node.health(pod.uid) == {device: False}
    node.model.inject(gpu, Recovery())
    node.advance(600.0)
    assert node.amounts()[RESOURCE].allocatable == 4
    assert node.health(pod.uid) == {device: True}


def test_devices_are_free_when_a_pod_has_ended_or_was_deleted() -> None:
    node = a_node(replicas=1)
    short, other = a_pod("short", duration="30s"), a_pod("other")
    node.bind(short, 1.0)
    node.bind(other, 1.0)
    late = a_pod("late")
    node.bind(late, 2.0)
    assert phase(node, late) == "Failed"
    node.advance(1.0 + POD_START_S)
    assert (phase(node, short), phase(node, other)) == ("Running", "Running")

    node.advance(32.5)
    assert (phase(node, short), phase(node, other)) == ("Succeeded", "Running")
    again = a_pod("again")
    node.bind(again, 33.0)
    assert devices(node, again) == devices(node, short)

    theirs = devices(node, other)
    node.remove(other.uid, 34.0)
    last = a_pod("last")
    node.bind(last, 35.0)
    assert devices(node, last) == theirs
    assert node.pod(other.uid) is None


def test_a_pod_that_runs_when_the_fleet_begins_ends_in_what_is_left_of_its_time() -> None:
    body = {
        "metadata": {
            "name": "old", "namespace": "team", "uid": "u",
            "annotations": {"gpuplugin.dev/duration": "60s"},
        },
        "spec": {"nodeName": "sim-0", "containers": [{"name": "main"}]},
        "status": {"phase": "Running", "startTime": "2025-12-31T23:59:10Z"},
    }  # fmt: skip
    node = a_node()
    pod = asked_pod(body, NOW)
    node.bind(pod, 1.0)

    node.advance(11.5)
    assert phase(node, pod) == "Running"
    node.advance(12.5)
    assert phase(node, pod) == "Succeeded"


def test_what_a_pod_that_runs_was_told_before_stays() -> None:
    since = {"type": "Ready", "status": "True", "lastTransitionTime": "2025-12-31T23:59:12Z"}
    before = {
        "phase": "Running", "startTime": "2025-12-31T23:59:10Z", "conditions": [since],
        "podIP": pod_address(7), "containerStatuses": [{"name": "main", "restartCount": 3}],
    }  # fmt: skip
    metadata = {"name": "old", "namespace": "team", "uid": "u"}
    spec = {"nodeName": "sim-0", "containers": [{"name": "main"}]}
    node = a_node()
    pod = asked_pod({"metadata": metadata, "spec": spec, "status": before}, NOW)
    node.bind(pod, 1.25)

    # It never comes to Pending: a kubelet's pods run on while it is away.
    assert phase(node, pod) == "Running"
    status: Any = pod_status(*node.pods[pod.uid], 0, NOW, {})["status"]
    assert (status["startTime"], status["podIP"]) == (before["startTime"], before["podIP"])
    assert {one["lastTransitionTime"] for one in status["conditions"]} == {
        since["lastTransitionTime"]
    }
    assert status["containerStatuses"][0]["restartCount"] == 3


def test_pods_of_a_fleet_have_addresses_of_their_own() -> None:
    addresses = PodAddresses()
    nodes = [a_node(name, addresses=addresses) for name in ("sim-0", "sim-1")]
    for number, node in enumerate((*nodes, *nodes)):
        node.bind(a_pod(f"pod-{number}"), 1.0)
    used = [state.address for node in nodes for _, state in node.pods.values()]
    assert len(set(used)) == 4

    nodes[0].remove("uid-pod-0", 2.0)
    for number in range(65_534 - 3):
        assert addresses.take() not in used[1:], number
    assert addresses.take() in used


def test_a_pod_keeps_the_time_of_its_admission() -> None:
    node = a_node()
    pod = a_pod("one")
    node.bind(pod, 1.0)
    node.advance(10.0)

    status: Any = pod_status(*node.pods[pod.uid], 0, NOW, {})["status"]
    assert status["startTime"] == "2026-01-01T00:00:01Z"
    (container,) = status["containerStatuses"]
    assert container["state"] == {"running": {"startedAt": "2026-01-01T00:00:02Z"}}


def test_a_condition_has_been_so_since_it_changed() -> None:
    later = datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
    well, broken = Condition(True, "AllGPUsHealthy", ""), Condition(False, "GPUsNotHealthy", "")
    first = node_conditions(well, [], NOW)
    same, changed = node_conditions(well, first, later), node_conditions(broken, first, later)

    assert [one["type"] for one in first][-2:] == ["Ready", "GPUHealthy"]
    assert [one["lastTransitionTime"] for one in same] == ["2026-01-01T00:00:00Z"] * 5
    assert {one["lastHeartbeatTime"] for one in same} == {"2026-01-01T00:01:00Z"}
    assert [one["lastTransitionTime"] for one in changed[-2:]] == [
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:01:00Z",
    ]
    away = [{**first[-2], "status": "Unknown"}]
    assert node_conditions(None, away, later)[-1]["lastTransitionTime"] == "2026-01-01T00:01:00Z"


def test_changes_of_health_are_there_to_be_reported() -> None:
    node = a_node()
    node.take_reports()
    gpu = node.model.present[0]
    node.model.inject(gpu, XidFault(xid=79))
    node.advance(5.0)

    (report,) = node.take_reports()
    assert (report.uuid, report.state, report.xid) == (gpu.identity.uuid, "Unhealthy", 79)
    assert report.event_message.endswith("action: reboot-node")
    assert node.take_reports() == []


def test_taints_of_others_stay_on_a_node() -> None:
    theirs = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    own = taints({}, Machine(tainted=True))
    assert [one["key"] for one in own] == ["gpuplugin.dev/simulated"]
    assert taints({"taints": [theirs, *own]}, Machine(tainted=True)) == [theirs, *own]
    assert taints({"taints": [*own, theirs]}, USUAL) == [theirs]
    made: Any = node_body("sim-0", "sim", "default", 0, Machine(tainted=True), {})
    assert made["spec"]["taints"] == own


def test_what_does_not_fit_is_refused_in_a_kubelets_words() -> None:
    node = a_node(machine=Machine(cpu="2", pods="2"))
    first, second, third = (a_pod(name, cpu="1500m") for name in ("a", "b", "c"))
    node.bind(first, 1.0)
    node.bind(second, 1.0)

    reason, message = node.pods[second.uid][1].reason, node.pods[second.uid][1].message
    assert reason == "OutOfcpu"
    assert message.endswith("cpu, requested: 1500, used: 1500, capacity: 2000")
    node.bind(a_pod("small", gpus=0, cpu="100m"), 2.0)
    node.bind(third, 2.0)
    assert node.pods[third.uid][1].reason == "OutOfpods"
    status: Any = pod_status(*node.pods[second.uid], 0, NOW, {})["status"]
    assert status["phase"] == "Failed"
    assert len(node.kubelet.view(2.0).pods) == 2


def test_a_load_that_finds_no_memory_is_restarted_or_fails() -> None:
    node = a_node()
    again, once = (
        a_pod("again", load="greedy"),
        a_pod("once", load="greedy", restart_policy="Never"),
    )
    node.bind(again, 1.0)
    node.bind(once, 1.0)

    node.advance(60.0)

    state = node.pods[again.uid][1]
    assert (state.phase, state.waiting) == ("Running", "CrashLoopBackOff")
    assert state.restarts == 2
    assert phase(node, once) == "Failed"
    status: Any = pod_status(again, state, 0, NOW, node.health(again.uid))["status"]
    (container,) = status["containerStatuses"]
    assert container["state"] == {"waiting": {"reason": "CrashLoopBackOff"}}
    last = container["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (1, "Error")
    assert last["startedAt"] <= last["finishedAt"]
    assert last["containerID"] == container["containerID"]
    ready = next(one for one in status["conditions"] if one["type"] == "Ready")
    assert ready["reason"] == "ContainersNotReady"
    assert ready["message"] == "containers with unready status: [main]"


def test_a_duration_that_is_none_is_told_and_without_an_end() -> None:
    pod = a_pod("odd", duration="soon")

    assert "'soon'" in pod.note
    node = a_node()
    node.bind(pod, 1.0)
    node.advance(100_000.0)
    assert phase(node, pod) == "Running"
