"""Reports to the API server, through the real client library, to a stand-in over real HTTP."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from gpuplugin.core.nodecondition import Condition, GpuReport
from gpuplugin.core.pacing import Backoff
from gpuplugin.daemon.cluster import nodereports
from gpuplugin.daemon.cluster.eventqueue import ReportFailed
from gpuplugin.daemon.cluster.kubeapi import KubeApi, NoCluster
from gpuplugin.daemon.cluster.nodereports import NodeReporter
from gpuplugin.daemon.http.metrics import Metrics
from hal import DriverUnavailable
from sim.apiserver import EVENTS, HANG, JSON, NODES, STRATEGIC, TOKEN, ApiServer, Key, Selection
from tests.component.cluster import body_of, events, node
from tests.component.cluster import condition as condition_of
from tests.component.fakedriver import FakeDriver
from tests.component.running import run_as_loaded, settings_for
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.component.conftest import StartPlugin
    from tests.component.running import Hardware

NODE = "gpu-node-1"
SICK = GpuReport("GPU-a", "3", "Unhealthy", "Xid 79: off the bus", "reboot-node", 79)
WELL = GpuReport("GPU-a", "3", "Healthy")
BAD = Condition(False, "GPUsNotHealthy", "1 of 8 GPUs is not healthy")
GOOD = Condition(True, "AllGPUsHealthy", "all GPUs are healthy (8)")
OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ApiServer([NODE]) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
        yield server


class Running:
    """A reporter on a loop in a thread."""

    def __init__(self, timeout_s: float) -> None:
        self.metrics = Metrics()
        self._api = KubeApi(NODE, timeout_s)
        self._started = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._main(),), daemon=True)
        self._thread.start()
        assert self._started.wait(DEADLINE_S)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reporter = NodeReporter(self._api, NODE, self.metrics)
        self._task = asyncio.create_task(self._reporter.run())
        self._started.set()
        with suppress(asyncio.CancelledError):
            await self._task

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def report(self, *news: GpuReport, condition: Condition) -> None:
        self._loop.call_soon_threadsafe(self._reporter.report, news, condition)

    def count(self, kind: str, result: str) -> float:
        return self.metrics.node_reports.labels(kind, result).value

    def wait_for(self, kind: str, result: str, times: int = 1) -> None:
        eventually(lambda: self.count(kind, result) >= times)


@contextmanager
def running(timeout_s: float = 10.0) -> Iterator[Running]:
    one = Running(timeout_s)
    try:
        yield one
    finally:
        one.stop()


@pytest.fixture
def reporter(server: ApiServer) -> Iterator[Running]:
    with running() as one:
        yield one


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodereports, "Backoff", lambda _first_s, _last_s: Backoff(0.02, 0.1))


def test_an_event_has_the_shape_that_kubectl_describe_node_looks_for(
    server: ApiServer, reporter: Running
) -> None:
    reporter.report(SICK, condition=BAD)
    reporter.wait_for("event", "sent")
    (request,) = [one for one in server.requests if "events" in one.path]

    assert (request.method, request.path) == ("POST", "/api/v1/namespaces/default/events")
    assert request.headers["content-type"] == JSON
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert request.query == {"fieldManager": "gpuplugin"}
    body: dict[str, Any] = body_of(request)
    name = body["metadata"]["name"]
    assert name.startswith(f"{NODE}.")
    first, last = body.pop("firstTimestamp"), body.pop("lastTimestamp")
    assert first == last
    assert TIME.fullmatch(first)
    assert body == {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": "default"},
        "involvedObject": {"kind": "Node", "name": NODE, "uid": NODE},
        "reason": "GPUUnhealthy",
        "message": "GPU 3 (GPU-a) is Unhealthy: Xid 79: off the bus; action: reboot-node",
        "type": "Warning",
        "count": 1,
        "source": {"component": "gpuplugin", "host": NODE},
        "reportingComponent": "gpuplugin",
        "reportingInstance": NODE,
    }


def test_reports_that_are_sent_are_not_logged(
    server: ApiServer, reporter: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    reporter.report(SICK, condition=BAD)
    reporter.wait_for("event", "sent")

    assert [one.name for one in caplog.records if one.name != "asyncio"] == []


def test_a_repeated_event_is_counted_up(server: ApiServer, reporter: Running) -> None:
    for times in (1, 2):
        reporter.report(SICK, condition=BAD)
        reporter.wait_for("event", "sent", times)
    made, counted = [one for one in server.requests if "events" in one.path]

    name = body_of(made)["metadata"]["name"]
    assert (counted.method, counted.path) == ("PATCH", f"{made.path}/{name}")
    assert counted.headers["content-type"] == STRATEGIC
    assert body_of(counted).keys() == {"count", "lastTimestamp"}
    assert [one["count"] for one in events(server)] == [2]


def test_an_event_that_the_server_has_dropped_is_made_again(
    server: ApiServer, reporter: Running
) -> None:
    reporter.report(SICK, condition=BAD)
    reporter.wait_for("event", "sent")
    server.store.delete_all(Selection(EVENTS))
    reporter.report(SICK, condition=BAD)
    reporter.wait_for("event", "sent", 2)

    assert [one["count"] for one in events(server)] == [2]


def test_the_condition_is_merged_into_the_nodes_status(
    server: ApiServer, reporter: Running
) -> None:
    reporter.report(condition=BAD)
    reporter.wait_for("condition", "sent")
    look, request = server.requests

    assert look.body == {}
    for one in (look, request):
        assert (one.method, one.path) == ("PATCH", f"/api/v1/nodes/{NODE}/status")
        assert one.headers["content-type"] == STRATEGIC
        assert one.query == {"fieldManager": "gpuplugin"}
    (sent,) = body_of(request)["status"]["conditions"]
    assert request.body == {"status": {"conditions": [sent]}}
    assert TIME.fullmatch(sent["lastHeartbeatTime"])
    assert TIME.fullmatch(sent["lastTransitionTime"])
    assert condition_of(server, NODE) == {
        "type": "GPUHealthy",
        "status": "False",
        "reason": "GPUsNotHealthy",
        "message": "1 of 8 GPUs is not healthy",
        "lastHeartbeatTime": sent["lastHeartbeatTime"],
        "lastTransitionTime": sent["lastTransitionTime"],
    }
    assert len(node(server, NODE)["status"]["conditions"]) == 2
    (ready, _) = node(server, NODE)["status"]["conditions"]
    assert ready["type"] == "Ready"


@pytest.mark.parametrize(("condition", "kept"), [(BAD, True), (GOOD, False)])
def test_a_condition_that_was_there_before_keeps_its_transition_time(
    server: ApiServer, reporter: Running, condition: Condition, *, kept: bool
) -> None:
    then = "2026-01-02T03:04:05Z"
    before = {
        "type": "GPUHealthy",
        "status": "False",
        "lastTransitionTime": then,
        "lastHeartbeatTime": then,
    }
    server.store.patch(
        Key(NODES, NODE), {"status": {"conditions": [before]}}, strategic=True, status=True
    )
    reporter.report(condition=condition)
    reporter.wait_for("condition", "sent")

    after = condition_of(server, NODE)
    assert after is not None
    assert (after["lastTransitionTime"] == then) is kept
    assert after["lastHeartbeatTime"] != then


def busy(server: ApiServer) -> None:
    server.fail(429, headers={"Retry-After": "0"})


def broken(server: ApiServer) -> None:
    server.fail(500)


def no_kubernetes(server: ApiServer) -> None:
    server.fail(502, headers={"Content-Type": "text/html"}, body=b"<html>bad gateway</html>")


def no_type(server: ApiServer) -> None:
    server.fail(503, headers={"Content-Type": ""}, body=b"")


def no_status(server: ApiServer) -> None:
    server.fail(500, body=b"not JSON")


def nonsense(server: ApiServer) -> None:
    server.fail(200, body=b"not JSON")


def hangs(server: ApiServer) -> None:
    server.fail(HANG)


@pytest.mark.parametrize(
    "trouble", [busy, broken, no_kubernetes, no_type, no_status, nonsense, hangs]
)
def test_a_server_in_trouble_is_asked_again(
    server: ApiServer, trouble: Callable[[ApiServer], None]
) -> None:
    for _ in range(3):
        trouble(server)
    with running(timeout_s=0.5) as reporter:
        reporter.report(SICK, condition=BAD)
        reporter.wait_for("event", "sent")
        reporter.wait_for("condition", "sent")

        failed = reporter.count("event", "failed") + reporter.count("condition", "failed")
        assert failed == 3
    assert [one["count"] for one in events(server)] == [1]
    assert condition_of(server, NODE) is not None


@pytest.mark.parametrize(
    ("text", "wait_s"), [("7", 7), ("100000", 300), ("Thu, 01 Jan 2026 00:00:00 GMT", 0), ("", 0)]
)
def test_the_servers_wish_to_wait_is_read(server: ApiServer, text: str, wait_s: float) -> None:
    server.fail(429, headers={"Retry-After": text})
    with pytest.raises(ReportFailed) as caught:
        KubeApi(NODE).patch_condition(None)

    assert (caught.value.retryable, caught.value.wait_s) == (True, wait_s)


def test_a_server_that_is_not_there_is_asked_again(server: ApiServer) -> None:
    server.stop()
    with running() as reporter:
        reporter.report(SICK, condition=BAD)
        reporter.wait_for("event", "failed", 3)
        reporter.wait_for("condition", "failed", 3)


def test_an_event_whose_answer_was_lost_is_not_made_twice(
    server: ApiServer, reporter: Running
) -> None:
    server.fail(409, path="events")
    reporter.report(SICK, condition=BAD)
    reporter.wait_for("event", "sent")

    assert len([one for one in server.requests if "events" in one.path]) == 1


def test_what_is_forbidden_is_told_once_with_the_right_that_is_missing(
    server: ApiServer, reporter: Running, caplog: pytest.LogCaptureFixture
) -> None:
    server.fail(403, 2)
    reporter.report(SICK, condition=BAD)
    reporter.wait_for("event", "failed")
    reporter.wait_for("condition", "failed")
    reporter.wait_for("event", "sent")
    reporter.wait_for("condition", "sent")

    told = sorted(one.getMessage() for one in caplog.records if one.levelname == "WARNING")
    assert len(told) == 2
    assert "condition was not sent: 403" in told[0]
    assert "patch on nodes/status (docs/operations.md)" in told[0]
    assert "event was not sent: 403" in told[1]
    assert "create and patch on events in the namespace default" in told[1]


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_what_the_server_will_never_take_is_not_sent_again(
    server: ApiServer, reporter: Running, status: int
) -> None:
    server.fail(status, 2)
    reporter.report(SICK, condition=BAD)
    reporter.wait_for("condition", "refused")
    reporter.wait_for("event", "refused")
    reporter.report(WELL, condition=GOOD)
    reporter.wait_for("event", "sent")

    assert [one["reason"] for one in events(server)] == ["GPUHealthy"]


def test_a_token_that_changes_is_read_again(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml.safe_load(Path(server.kubeconfig(tmp_path)).read_text())
    token = tmp_path / "token"
    config["users"][0]["user"] = {"tokenFile": str(token)}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    with running() as reporter:
        for times, text in enumerate(("one", "two"), 1):
            token.write_text(text)
            reporter.report(condition=Condition(True, "A", text))
            reporter.wait_for("condition", "sent", times)

    assert server.requests[0].headers["authorization"] == "Bearer one"
    assert server.requests[-1].headers["authorization"] == "Bearer two"


WITHOUT_USER = """\
current-context: a
clusters: [{name: b, cluster: {}}]
contexts: [{name: a, context: {cluster: b}}]
"""


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "{current-context: a, clusters: [], contexts: []}", WITHOUT_USER]
)
def test_a_kubeconfig_that_is_of_no_use(server: ApiServer, tmp_path: Path, text: str) -> None:
    (tmp_path / "kubeconfig").write_text(text)

    with pytest.raises(NoCluster):
        KubeApi(NODE)


# Together with the daemon

ON = {"--kubernetes-reports": "true", "--node-name": NODE}


def test_the_plugin_is_ready_whatever_the_server_does(
    server: ApiServer, start_plugin: StartPlugin
) -> None:
    server.stop()
    plugin = start_plugin(FakeDriver(), "none", ON)

    eventually(lambda: plugin.ready)
    assert "node-reports" not in plugin.get("/ready").body


def test_a_fault_and_its_end_reach_the_cluster(
    server: ApiServer, start_plugin: StartPlugin, hardware: Hardware
) -> None:
    start_plugin(hardware.backend, "none", ON)
    eventually(lambda: in_status(server, "True"))
    assert events(server) == [], "that a GPU is listed is no event"
    hardware.xid(3, 79)
    condition = eventually(lambda: in_status(server, "False"))
    assert condition["reason"] == "GPUsNotHealthy"
    assert f"GPU 3 ({hardware.uuids[3]}): Xid 79" in condition["message"]
    hardware.recover(3)
    eventually(lambda: in_status(server, "True"))
    reasons = ["GPUUnhealthy", "GPURecovering", "GPUHealthy"]
    eventually(lambda: [one["reason"] for one in events(server)] == reasons)
    for event in events(server):
        assert hardware.uuids[3] in event["message"]


def test_a_monitor_that_is_blind_makes_the_condition_unknown(
    server: ApiServer, start_plugin: StartPlugin
) -> None:
    driver = FakeDriver(2)
    start_plugin(driver, "none", ON)
    eventually(lambda: in_status(server, "True"))
    driver.break_waiting(DriverUnavailable("the event set is broken", "Load the driver again"))
    condition = eventually(lambda: in_status(server, "Unknown"))
    assert "the event set is broken" in condition["message"]
    driver.break_waiting(None)
    eventually(lambda: in_status(server, "True"))


def in_status(server: ApiServer, status: str) -> dict[str, Any] | None:
    """The condition, once it has this status."""
    condition = condition_of(server, NODE)
    return condition if condition and condition["status"] == status else None


def test_a_cluster_that_is_not_configured_ends_the_start(
    kubelet_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubelet_dir / "none"))

    assert asyncio.run(run_as_loaded(settings_for(kubelet_dir, ON), FakeDriver())) == 1
    (record,) = [one for one in caplog.records if one.levelname == "ERROR"]
    assert "automountServiceAccountToken" in record.getMessage()


# What the documents say


def _documented() -> list[dict[str, Any]]:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", OPERATIONS.read_text(), re.MULTILINE | re.DOTALL)
    return list(yaml.safe_load_all(block))


def test_the_documented_rights_are_those_that_are_used(
    server: ApiServer, reporter: Running
) -> None:
    for times in (1, 2):
        reporter.report(SICK, condition=BAD)
        reporter.wait_for("event", "sent", times)
    reporter.wait_for("condition", "sent")

    granted = {
        (verb, resource, document["metadata"].get("namespace", ""))
        for document in _documented()
        for rule in document.get("rules", [])
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if rule["apiGroups"] == [""]
    }
    assert granted == server.rights()


def test_the_documented_bindings_bind_the_documented_roles() -> None:
    documents = {(one["kind"], one["metadata"]["name"]): one for one in _documented()}
    roles = [key for key in documents if key[0].endswith("Role")]
    bindings = [one for (kind, _), one in documents.items() if kind.endswith("Binding")]

    assert sorted((one["roleRef"]["kind"], one["roleRef"]["name"]) for one in bindings) == sorted(
        roles
    )
    for binding in bindings:
        role = documents[binding["roleRef"]["kind"], binding["roleRef"]["name"]]
        assert binding["metadata"].get("namespace") == role["metadata"].get("namespace")
        assert [one["kind"] for one in binding["subjects"]] == ["ServiceAccount"]
