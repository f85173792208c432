"""Pods of a cluster at work on simulated GPUs: what they declare, who tells it, and its end."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from gpuplugin.core.usage import Holding, PodName
from gpuplugin.daemon.cluster.pods import PodResourcesUnavailable
from sim.apiserver import PODS, ApiServer, Key
from sim.node.node import SimulatedNode
from sim.node.podlife import Backoff
from sim.node.podwork import PodWork
from sim.node.realtime import RealTimeNode
from sim.node.scenario import parse_scenario
from sim.pods.loads import ClusterPods, declared, load_names
from sim.pods.podlist import LOAD, ClusterPod, NodePods, PodsUnreadable
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NODE = "gpu-node-1"
SCENARIO = parse_scenario(
    """
gpus: [{model: l4, count: 2}]
pods:
  - {name: camera, workload: {kind: duty-cycle, period_ms: 20, share: 0.2}, memory: {start_gib: 1}}
""",
    "loads",
)
SHORT = Backoff(first_s=0.05, longest_s=0.2, steady_s=60.0)


@dataclass
class Cluster:
    """The API server's side and the kubelet's; changes are told at once."""

    pods: dict[str, ClusterPod] = field(default_factory=dict)
    held: dict[str, tuple[str, ...]] = field(default_factory=dict)
    refusal: str = ""
    _changes: list[tuple[ClusterPod, bool]] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def run(self, name: str, load: str | None, *device_ids: str, uid: str = "u") -> None:
        self.tell(ClusterPod("ml", name, f"{uid}-{name}", "Running", load))
        self.held[name] = device_ids

    def tell(self, pod: ClusterPod, *, is_there: bool = True) -> None:
        with self._changed:
            self._changes.append((pod, is_there))
            self._changed.notify_all()

    def follow(self) -> Iterator[tuple[ClusterPod, bool]]:
        if self.refusal:
            raise PodsUnreadable(self.refusal)
        seen: list[tuple[ClusterPod, bool]] = []
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: len(self._changes) > len(seen), 0.5):
                    return
                change = self._changes[len(seen)]
            seen.append(change)
            yield change

    def holdings(self) -> list[Holding]:
        return [
            Holding(PodName("ml", name), "main", "nvidia.com/gpu", ids)
            for name, ids in dict(self.held).items()
        ]


@dataclass
class AtWork:
    cluster: Cluster
    node: RealTimeNode
    host: Path

    def uuid(self, index: int) -> str:
        with self.node.read() as model:
            return model.present[index].identity.uuid

    def tenants(self, index: int) -> list[str]:
        with self.node.read() as model:
            return sorted(one.name for one in model.present[index].processes())


@contextmanager
def at_work(cluster: Cluster, host: Path) -> Iterator[AtWork]:
    node = RealTimeNode(SimulatedNode(SCENARIO))
    node.start()
    pods = ClusterPods(SCENARIO, cluster, cluster.holdings, poll_s=0.05)
    work = PodWork(pods, node, host, pods.work_of, backoff=SHORT)
    pods.start()
    work.start()
    try:
        yield AtWork(cluster, node, host)
    finally:
        pods.stop()
        work.stop()
        node.stop()


def test_a_pod_works_on_its_gpu_from_its_start_to_its_end(tmp_path: Path) -> None:
    with at_work(Cluster(), tmp_path) as world:
        first, second = world.uuid(0), world.uuid(1)
        world.cluster.run("eye", "camera", f"{first}::3")
        world.cluster.run("job", "trainer", second)
        world.cluster.run("quiet", None, f"{first}::4")
        eventually(lambda: world.tenants(0) == ["eye"] and world.tenants(1) == ["job"])
        with world.node.read() as model:
            used = model.present[1].telemetry(model.now_s).memory_used_bytes or 0
        assert used > 16 << 30
        assert [path.name for path in (tmp_path / "pod-logs").iterdir() if "eye" in path.name] == [
            "ml_eye_u-eye"
        ]

        world.cluster.tell(ClusterPod("ml", "job", "u-job", "Succeeded", "trainer"))
        eventually(lambda: not world.tenants(1))
        del world.cluster.held["eye"]
        eventually(lambda: not world.tenants(0))


def test_a_pod_of_the_same_name_is_another(tmp_path: Path) -> None:
    with at_work(Cluster(), tmp_path) as world:
        world.cluster.run("a", "camera", world.uuid(0))
        eventually(lambda: world.tenants(0) == ["a"])
        with world.node.read() as model:
            (before,) = [one.pid for one in model.present[0].processes()]
        world.cluster.run("a", "camera", world.uuid(0), uid="v")

        def is_another() -> bool:
            with world.node.read() as model:
                pids = [one.pid for one in model.present[0].processes()]
            return len(pids) == 1 and pids != [before]

        eventually(is_another)


def test_a_load_that_there_is_not_is_named_and_its_pod_idle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with at_work(Cluster(), tmp_path) as world:
        world.cluster.run("odd", "mining", world.uuid(0))
        world.cluster.run("eye", "camera", world.uuid(0))
        eventually(lambda: world.tenants(0) == ["eye"])
        eventually(lambda: caplog.records)
        (record,) = caplog.records
    text = record.getMessage()
    assert text.startswith("pod ml/odd is idle: its gpuplugin.dev/load is 'mining'; there are ")
    assert "camera, notebook" in text
    assert "trainer" in text


def test_without_the_right_to_list_pods_it_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    cluster = Cluster(refusal="403; needs list and watch on pods")
    with at_work(cluster, tmp_path):
        eventually(lambda: "so they are idle: 403" in caplog.text)


def test_pods_are_not_listed_where_the_kubelet_cannot_be_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[int] = []

    def holdings() -> list[Holding]:
        asked.append(0)
        raise PodResourcesUnavailable("no socket")

    pods = ClusterPods(SCENARIO, Cluster(refusal="403"), holdings, poll_s=0.01)
    pods.start()
    eventually(lambda: len(asked) > 6)
    pods.stop()

    assert "no socket" in caplog.text
    assert "403" not in caplog.text


def test_what_is_not_known_is_told_once_until_it_is_known(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[int] = []

    def holdings() -> list[Holding]:
        number = len(asked)
        asked.append(number)
        if number in (0, 1, 3, 4):
            raise PodResourcesUnavailable(f"try {number}")
        return []

    pods = ClusterPods(SCENARIO, Cluster(), holdings, poll_s=0.01)
    pods.start()
    eventually(lambda: len(asked) > 6)
    pods.stop()

    told = [one.getMessage() for one in caplog.records if "which pod has" in one.getMessage()]
    assert [text.rpartition(" ")[2] for text in told] == ["0", "3"]


@pytest.mark.parametrize("name", load_names(SCENARIO))
def test_every_load_fits_a_gpu(name: str) -> None:
    spec = declared(SCENARIO, name, "pod-1")
    assert spec is not None
    assert spec.name == "pod-1"
    assert (spec.memory.start_gib or 0) < 24


def a_pod(name: str, node: str = NODE, **metadata: object) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "ml", **metadata},
        "spec": {"nodeName": node, "containers": []},
    }


def test_the_api_server_tells_of_the_nodes_own_pods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ApiServer([NODE]) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
        for made in (
            a_pod("noted", annotations={LOAD: "trainer"}, labels={LOAD: "camera"}),
            a_pod("labelled", labels={LOAD: "camera"}),
            a_pod("elsewhere", node="other", labels={LOAD: "camera"}),
        ):
            name = made["metadata"]["name"]  # type: ignore[index]
            server.store.create(Key(PODS, name, "ml"), made)
        followed = NodePods(NODE).follow()
        seen = [next(followed), next(followed)]
        assert {(pod.name, pod.load, there) for pod, there in seen} == {
            ("noted", "trainer", True),
            ("labelled", "camera", True),
        }
        key = Key(PODS, "noted", "ml")
        server.store.patch(key, {"status": {"phase": "Running"}}, status=True)
        pod, there = next(followed)
        assert (pod.name, pod.phase, there) == ("noted", "Running", True)
        server.store.delete(key)
        pod, there = next(followed)
        assert (pod.name, there) == ("noted", False)


def test_a_refusal_names_the_right_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ApiServer([NODE]) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
        server.fail(403, times=5, path="pods")
        with pytest.raises(PodsUnreadable, match=r"\A.*403.*needs list and watch on pods\Z"):
            next(NodePods(NODE).follow())


def test_without_a_node_name_it_says_what_to_set() -> None:
    with pytest.raises(PodsUnreadable, match="NODE_NAME"):
        next(NodePods("").follow())
