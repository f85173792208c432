"""`gpuplugin sim fleet`: nodes without kubelets at an API server, as a process."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.fleet import measure
from sim.apiserver import EVENTS, LEASES, NODES, PODS, ApiServer, Key, Selection
from tests.e2e.conftest import Process, eventually, get, gpuplugin, http_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RESOURCE = "nvidia.com/gpu"
LISTEN = ("--listen-address", "127.0.0.1:0")


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def env(server: ApiServer, tmp_path: Path) -> dict[str, str]:
    kubeconfig = server.kubeconfig(tmp_path)
    return os.environ | {"KUBECONFIG": str(kubeconfig), "NO_PROXY": "127.0.0.1"}


def a_fleet(env: dict[str, str], *arguments: str) -> Process:
    return Process("sim", "fleet", "--scenario", "homelab", *LISTEN, *arguments, env=env)


def nodes(server: ApiServer) -> dict[str, Any]:
    _, bodies = server.store.select(Selection(NODES))
    found: dict[str, Any] = {body["metadata"]["name"]: body for body in bodies}  # type: ignore[index]
    return found


def leases(server: ApiServer) -> dict[str, Any]:
    _, bodies = server.store.select(Selection(LEASES, "kube-node-lease"))
    return {body["metadata"]["name"]: body["spec"] for body in bodies}  # type: ignore[index]


def test_nodes_have_what_a_kubelet_writes_and_are_gone_at_the_end(
    server: ApiServer, env: dict[str, str]
) -> None:
    options = ("--nodes", "3", "--lease-seconds", "4", "--label", "pool=a", "--taint")
    with a_fleet(env, *options) as fleet:
        fleet.says("3 nodes are kept: sim-0 to sim-2")
        found = nodes(server)
        first = leases(server)
        eventually(
            lambda: all(
                one["renewTime"] > first[name]["renewTime"] for name, one in leases(server).items()
            ),
            "every lease is renewed",
        )

        assert fleet.stop() == 0

    assert sorted(found) == ["sim-0", "sim-1", "sim-2"]
    node = found["sim-1"]
    assert node["status"]["allocatable"] == {
        "cpu": "64",
        "memory": "512Gi",
        "pods": "110",
        RESOURCE: "10",
    }
    assert node["status"]["capacity"] == node["status"]["allocatable"]
    conditions = {one["type"]: one["status"] for one in node["status"]["conditions"]}
    assert conditions == {
        "MemoryPressure": "False",
        "DiskPressure": "False",
        "PIDPressure": "False",
        "Ready": "True",
    }
    assert node["metadata"]["labels"]["pool"] == "a"
    assert node["metadata"]["labels"]["nvidia.com/gpu.replicas"] == "10"
    assert node["spec"]["taints"][0]["key"] == "gpuplugin.dev/simulated"
    assert len({one["status"]["addresses"][0]["address"] for one in found.values()}) == 3
    assert first["sim-2"]["holderIdentity"] == "sim-2"
    assert first["sim-2"]["leaseDurationSeconds"] == 4
    assert nodes(server) == {}
    assert leases(server) == {}


@pytest.mark.slow
def test_a_fleet_adopts_its_nodes_and_touches_no_others(
    server: ApiServer, env: dict[str, str]
) -> None:
    server.store.create(Key(NODES, "worker"), {"metadata": {"labels": {"a": "b"}}})
    worker = server.store.get(Key(NODES, "worker"))
    with a_fleet(env, "--nodes", "3", "--keep") as fleet:
        fleet.says("3 nodes are kept")
        assert fleet.stop() == 0
    uid = nodes(server)["sim-0"]["metadata"]["uid"]

    with a_fleet(env, "--nodes", "2", "--replicas", "4") as fleet:
        fleet.says("2 nodes are kept")
        found = nodes(server)
        assert fleet.stop() == 0

    assert sorted(found) == ["sim-0", "sim-1", "worker"]
    assert found["sim-0"]["metadata"]["uid"] == uid
    assert found["sim-0"]["status"]["allocatable"][RESOURCE] == "4"
    assert nodes(server) == {"worker": worker}


def test_a_node_of_somebody_else_is_not_taken(server: ApiServer, env: dict[str, str]) -> None:
    server.store.create(Key(NODES, "sim-1"), {})
    theirs = server.store.get(Key(NODES, "sim-1"))

    with a_fleet(env, "--nodes", "2") as fleet:
        assert fleet.exit_status() == 1

    assert "node sim-1 exists and is not of this fleet" in fleet.output
    assert nodes(server) == {"sim-1": theirs}


@pytest.mark.slow
def test_pools_bad_answers_and_a_node_that_somebody_deletes(
    server: ApiServer, env: dict[str, str]
) -> None:
    server.fail(429, 1, headers={"Retry-After": "0"})
    server.fail(503, 1, path="/leases")
    options = ("--scenario", "mig=1", "--lease-seconds", "4", "--mig-strategy", "mixed")
    with Process("sim", "fleet", "--scenario", "homelab=1", *LISTEN, *options, env=env) as fleet:
        fleet.says("2 nodes are kept")
        found = nodes(server)
        server.store.delete(Key(NODES, "sim-0"))
        fleet.says("node sim-0 was deleted")
        before = leases(server)["sim-1"]["renewTime"]
        eventually(lambda: leases(server)["sim-1"]["renewTime"] > before, "others are kept")
        left = nodes(server)
        server.break_watches(forget=True)
        server.fail(500, 1, path="/pods")
        pod = create_pod(server, "late", "sim-1", 0)
        eventually(lambda: phase(server, pod) == "Running", "pods are followed again")
        assert fleet.stop() == 0

    assert found["sim-0"]["metadata"]["labels"]["gpuplugin.dev/scenario"] == "homelab"
    assert any("mig-" in name for name in found["sim-1"]["status"]["capacity"])
    assert list(left) == ["sim-1"]
    assert not server.failures_left


def create_pod(
    server: ApiServer,
    name: str,
    node: str,
    gpus: int = 1,
    annotations: dict[str, str] | None = None,
    **spec: object,
) -> Key:
    """A pod that a scheduler has bound."""
    key = Key(PODS, name, "team")
    container = {
        "name": "main",
        "image": "example.com/work",
        "resources": {"limits": {RESOURCE: str(gpus)}, "requests": {"cpu": "500m"}},
    }
    metadata = {"name": name, "namespace": "team", "annotations": annotations or {}}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 30, **spec}
    server.store.create(key, {"metadata": metadata, "spec": spec})
    server.store.patch(key, {"spec": {"nodeName": node}})
    return key


def status(server: ApiServer, key: Key) -> Any:
    return server.store.get(key)["status"]


def phase(server: ApiServer, key: Key) -> str:
    return str(status(server, key)["phase"])


@pytest.mark.slow
def test_pods_on_nodes_of_a_fleet_run_end_and_go(server: ApiServer, env: dict[str, str]) -> None:
    server.store.create(Key(NODES, "worker"), {})
    elsewhere = create_pod(server, "elsewhere", "worker")
    with a_fleet(env, "--nodes", "2") as fleet:
        fleet.says("2 nodes are kept")
        training = create_pod(server, "training", "sim-0", 1, {"gpuplugin.dev/load": "trainer"})
        short = create_pod(server, "short", "sim-1", 1, {"gpuplugin.dev/duration": "1s"})
        large = create_pod(server, "large", "sim-1", 11)
        eventually(lambda: phase(server, training) == "Running", "it runs")
        running = status(server, training)
        _, metrics = get(http_port(fleet), "/metrics")
        ready, _ = get(http_port(fleet), "/ready")
        eventually(lambda: phase(server, large) == "Failed", "it is refused")
        refused = status(server, large)
        eventually(lambda: phase(server, short) == "Succeeded", "it ends after its duration")
        ended = status(server, short)
        server.store.delete(training, grace_s=30)
        eventually(
            lambda: not server.store.select(Selection(PODS, fields={"spec.nodeName": "sim-0"}))[1],
            "its kubelet removes it",
        )
        left = status(server, elsewhere)
        assert fleet.stop() == 0

    (container,) = running["containerStatuses"]
    (given,) = container["allocatedResourcesStatus"]
    assert given["name"] == RESOURCE
    assert [one["health"] for one in given["resources"]] == ["Healthy"]
    assert all(one["resourceID"].startswith("GPU-") for one in given["resources"])
    assert {one["type"]: one["status"] for one in running["conditions"]}["Ready"] == "True"
    assert running["hostIP"] != running["podIP"]
    assert refused["reason"] == "UnexpectedAdmissionError"
    assert "Requested: 11, Available: " in refused["message"]
    assert ended["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 0
    assert left == {"phase": "Pending"}
    assert ready == 200
    processes = [one for one in metrics.splitlines() if one.startswith("gpuplugin_pod_processes{")]
    (busy,) = [one for one in processes if one.endswith(" 1.0")]
    assert 'node="sim-0",pod="training"' in busy
    assert 'gpuplugin_devices{health="Healthy",node="sim-1",' in metrics


@pytest.mark.slow
def test_a_pod_that_came_in_the_place_of_another_has_a_status_of_its_own(
    server: ApiServer, env: dict[str, str]
) -> None:
    """The fleet does not know yet: its watch is broken, and it cannot list pods."""

    def writes() -> int:
        patches = (one for one in server.requests if one.right[:2] == ("patch", "pods/status"))
        return sum("team/pods/web-0" in one.path for one in patches)

    with a_fleet(env, "--nodes", "1") as fleet:
        fleet.says("1 nodes are kept")
        web = create_pod(server, "web-0", "sim-0", 0, {"gpuplugin.dev/duration": "3s"})
        eventually(lambda: phase(server, web) == "Running", "the first runs")
        server.fail(503, 1000, path="/api/v1/pods")
        server.break_watches()
        server.store.delete(web)
        server.store.create(web, {"metadata": {"name": "web-0", "namespace": "team"}, "spec": {}})
        before = writes()
        eventually(lambda: writes() > before + 1 or phase(server, web) != "Pending", "it ends")
        left = status(server, web)
        assert fleet.stop() == 0

    assert left == {"phase": "Pending"}


def gpu_condition(server: ApiServer, name: str) -> Any:
    found = nodes(server).get(name, {}).get("status", {}).get("conditions", ())
    return next((one for one in found if one["type"] == "GPUHealthy"), None)


def events(server: ApiServer) -> list[Any]:
    return list(server.store.select(Selection(EVENTS, "default"))[1])


@pytest.mark.slow
def test_pods_run_on_while_the_fleet_is_away(server: ApiServer, env: dict[str, str]) -> None:
    with a_fleet(env, "--nodes", "2") as fleet:
        fleet.says("2 nodes are kept")
        pods = [create_pod(server, f"on-{node}", node) for node in ("sim-0", "sim-1")]
        eventually(lambda: all(phase(server, pod) == "Running" for pod in pods), "they run")
        fleet.signal(signal.SIGKILL)
        fleet.exit_status()
    theirs = {"type": "DisruptionTarget", "status": "True"}
    for pod in pods:
        server.store.patch(pod, {"status": {"conditions": [theirs]}}, strategic=True, status=True)
    cordoned = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    server.store.patch(Key(NODES, "sim-0"), {"spec": {"taints": [cordoned]}})
    before = [status(server, pod) for pod in pods]
    server.requests.clear()

    with a_fleet(env, "--nodes", "2", "--taint") as fleet:
        fleet.says("2 nodes are kept")
        eventually(
            lambda: (
                sum(request.right[:2] == ("patch", "pods/status") for request in server.requests)
                == 2
            ),
            "the fleet has taken them over",
        )
        late = create_pod(server, "late", "sim-0")
        eventually(lambda: phase(server, late) == "Running", "another one runs")
        after, addresses = [status(server, pod) for pod in pods], status(server, late)["podIPs"]
        tainted = nodes(server)["sim-0"]["spec"]["taints"]
        assert fleet.stop() == 0

    for old, new in zip(before, after, strict=True):
        for name in ("phase", "startTime", "podIP", "podIPs", "conditions"):
            assert new[name] == old[name], name
    assert len({*(one["podIP"] for one in after), addresses[0]["ip"]}) == 3
    assert [one["key"] for one in tainted] == [cordoned["key"], "gpuplugin.dev/simulated"]


@pytest.mark.slow
def test_a_fault_by_hand_takes_devices_of_one_node_out(
    server: ApiServer, env: dict[str, str], tmp_path: Path
) -> None:
    socket = str(tmp_path / "fleet.sock")

    def allocatable() -> list[str]:
        return [node["status"]["allocatable"][RESOURCE] for node in nodes(server).values()]

    reports = ("--kubernetes-reports", "--control", socket)
    with a_fleet(env, "--nodes", "2", *reports) as fleet:
        fleet.says("2 nodes are kept")
        at = ("sim", "inject", "--control", socket, "--gpu", "0")
        unknown = gpuplugin(*at, "--node", "sim-2", "--xid", "79")
        server.fail(403, path="nodes/sim-1/status")  # as one that has just started
        injected = gpuplugin(*at, "--node", "sim-1", "--xid", "79")
        eventually(lambda: allocatable() == ["10", "0"], "the node's allocatable follows")
        capacity = nodes(server)["sim-1"]["status"]["capacity"][RESOURCE]
        lost = gpu_condition(server, "sim-1")
        eventually(lambda: events(server), "there is an Event")
        (event,) = events(server)
        assert fleet.stop() == 0

    assert "has no node 'sim-2': it has sim-0 to sim-1" in unknown.stderr
    assert "Xid 79" in injected.stdout
    assert not server.failures_left
    assert capacity == "10"
    assert gpu_condition(server, "sim-0") is None, "the nodes are gone"
    assert (lost["status"], lost["reason"]) == ("False", "GPUsNotHealthy")
    assert "Xid 79" in lost["message"]
    assert (event["reason"], event["type"]) == ("GPUUnhealthy", "Warning")
    assert event["involvedObject"] == {"kind": "Node", "name": "sim-1", "uid": "sim-1"}
    assert event["message"].endswith("Xid 79: GPU has fallen off the bus; action: reboot-node")


@pytest.mark.slow
def test_what_five_hundred_nodes_cost_stays_within_generous_bounds() -> None:
    """Bounds for a machine on which much else runs; docs/fleet.md has the figures."""
    cost = measure(500, 0, "default", 10.0, working=False)

    assert cost.resident_mib < 300
    assert cost.cpu_percent < 25
    assert 40 < cost.requests_per_s < 100
