"""The simulated API server over HTTP: what a client may rely on, and what it must expect."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import threading
from contextlib import contextmanager
from datetime import datetime, timedelta
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import pytest

from sim.apiserver import HANG, JSON, STRATEGIC, ApiServer
from sim.apiserver.server import MERGE
from sim.apiserver.store import NODES, Key, Store
from sim.cli.cluster import cluster
from tests.component.waiting import DEADLINE_S, eventually
from tests.deploy.binaries import program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SLICES = "/apis/resource.k8s.io/v1/resourceslices"
CLAIMS = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims"
NODE = "n1"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer([NODE, "n2"]) as server:
        yield server


@contextmanager
def connection(server: ApiServer) -> Iterator[HTTPConnection]:
    host, port = server.url.removeprefix("http://").split(":")
    one = HTTPConnection(host, int(port), timeout=DEADLINE_S)
    try:
        yield one
    finally:
        one.close()


def ask(
    server: ApiServer, method: str, path: str, body: object = None, kind: str = JSON
) -> tuple[int, dict[str, Any]]:
    with connection(server) as one:
        content = None if body is None else json.dumps(body)
        one.request(method, path, content, {"Content-Type": kind})
        response = one.getresponse()
        return response.status, json.loads(response.read())


def a_slice(name: str, node: str = NODE, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {
            "driver": "gpu.example.com",
            "nodeName": node,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
            "devices": [],
            **spec,
        },
    }


def made(server: ApiServer, path: str, body: dict[str, Any]) -> dict[str, Any]:
    status, answer = ask(server, "POST", path, body)
    assert status == 201, answer
    return answer


class Watch:
    """A watch, read in a thread: its events as (type, name)."""

    def __init__(self, server: ApiServer, query: str, path: str = SLICES) -> None:
        self.seen: list[tuple[str, Any]] = []
        self.ended = threading.Event()
        self._query = f"{path}?watch=true&{query}"
        self._server = server
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        with connection(self._server) as one:
            one.request("GET", self._query)
            response = one.getresponse()
            while line := response.readline():
                event = json.loads(line)
                about = event["object"]
                known = about["metadata"].get("name") or about.get("code")
                self.seen.append((event["type"], known))
            self.ended.set()

    def sees(self, *events: tuple[str, Any]) -> None:
        eventually(lambda: self.seen == list(events) or None)


def test_an_object_has_what_the_server_gives_it(server: ApiServer) -> None:
    body = made(server, SLICES, {**a_slice(""), "metadata": {"generateName": "n1-"}})
    metadata = body["metadata"]
    assert metadata["name"].startswith("n1-")
    assert len(metadata["name"]) > 3
    assert metadata["generation"] == 1
    assert {"uid", "resourceVersion", "creationTimestamp"} <= metadata.keys()
    assert (body["apiVersion"], body["kind"]) == ("resource.k8s.io/v1", "ResourceSlice")
    assert ask(server, "GET", f"{SLICES}/{metadata['name']}") == (200, body)
    assert ask(server, "POST", SLICES, body)[1]["reason"] == "AlreadyExists"


def test_an_update_of_something_that_changed_meanwhile_is_a_conflict(server: ApiServer) -> None:
    first = made(server, SLICES, a_slice("a"))
    path, devices = f"{SLICES}/a", [{"name": "gpu-0"}]
    second = {**first, "spec": {**first["spec"], "devices": devices}}
    status, stored = ask(server, "PUT", path, second)
    assert (status, stored["metadata"]["generation"]) == (200, 2)
    assert stored["metadata"]["resourceVersion"] != first["metadata"]["resourceVersion"]
    assert ask(server, "PUT", path, first)[0] == 409
    assert ask(server, "PUT", path, stored)[1] == stored, "nothing changed, nothing was written"
    del first["metadata"]["resourceVersion"]
    assert ask(server, "PUT", path, first)[0] == 200, "without a version the last one wins"
    assert ask(server, "DELETE", path, {"preconditions": {"uid": "other"}})[0] == 409
    assert ask(server, "DELETE", path)[0] == 200
    for method in ("GET", "PUT", "DELETE"):
        assert ask(server, method, path, first)[0] == 404


def test_what_is_not_allowed_is_refused_and_a_dry_run_stores_nothing(server: ApiServer) -> None:
    wrong = a_slice("a", devices=[{"name": "GPU"}])
    status, answer = ask(server, "POST", SLICES, wrong)
    assert status == 422
    assert "spec.devices.0.name" in answer["message"]
    status, answer = ask(server, "POST", f"{SLICES}?dryRun=All", a_slice("a"))
    assert (status, answer["metadata"]["name"]) == (201, "a")
    assert ask(server, "GET", f"{SLICES}/a")[0] == 404


def test_fields_of_features_that_are_off_are_dropped_without_a_word(server: ApiServer) -> None:
    capacity = {"shares": {"value": "10", "requestPolicy": {"default": "1"}}}
    taint = {"key": "example.com/xid", "effect": "NoSchedule"}
    shared = {"name": "gpu-0", "allowMultipleAllocations": True, "capacity": capacity}
    (on,) = made(server, SLICES, a_slice("a", devices=[{**shared, "taints": [taint]}]))["spec"][
        "devices"
    ]
    assert on["allowMultipleAllocations"] is True
    assert on["taints"][0]["timeAdded"].endswith("Z")
    server.store.off.update({"DRAConsumableCapacity", "DRADeviceTaints"})
    (off,) = made(server, SLICES, a_slice("b", devices=[{**shared, "taints": [taint]}]))["spec"][
        "devices"
    ]
    assert off == {"name": "gpu-0", "capacity": {"shares": {"value": "10"}}}


def test_a_watch_sees_its_objects_and_no_others(server: ApiServer) -> None:
    made(server, SLICES, a_slice("before"))
    version = ask(server, "GET", SLICES)[1]["metadata"]["resourceVersion"]
    mine = f"fieldSelector=spec.nodeName%3D{NODE}"
    from_now = Watch(server, f"resourceVersion={version}&{mine}")
    from_start = Watch(server, mine)
    from_start.sees(("ADDED", "before"))
    made(server, SLICES, a_slice("other", "n2"))
    made(server, SLICES, a_slice("mine"))
    ask(server, "PUT", f"{SLICES}/mine", a_slice("mine", devices=[{"name": "gpu-0"}]))
    ask(server, "DELETE", f"{SLICES}?{mine}")
    later = (("ADDED", "mine"), ("MODIFIED", "mine"), ("DELETED", "before"), ("DELETED", "mine"))
    from_now.sees(*later)
    from_start.sees(("ADDED", "before"), *later)
    assert [one["metadata"]["name"] for one in ask(server, "GET", SLICES)[1]["items"]] == ["other"]


def test_a_watch_ends_when_it_is_broken_or_its_time_is_over(server: ApiServer) -> None:
    version = ask(server, "GET", SLICES)[1]["metadata"]["resourceVersion"]
    for broken in (Watch(server, f"resourceVersion={version}"), Watch(server, "timeoutSeconds=0")):
        eventually(lambda: any(one.watches for one in server.requests))
        server.break_watches(forget=True)
        assert broken.ended.wait(DEADLINE_S)
    gone = Watch(server, f"resourceVersion={version}")
    gone.sees(("ERROR", 410))
    assert gone.ended.wait(DEADLINE_S)


class Overtaken(Store):
    """A store that changes right after each of the first looks at its changes."""

    def __init__(self, *later: str) -> None:
        super().__init__()
        self._later = list(later)

    def changes(self, since: int) -> Any:
        found = super().changes(since)
        if self._later:
            self.create(Key(NODES, self._later.pop(0)), {})
        return found


def test_a_watch_with_bookmarks_misses_no_change_between_two_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sim.apiserver.server.BOOKMARK_S", 0.05)
    with ApiServer(store=Overtaken("a", "b", "c")) as server:
        watch = Watch(server, "allowWatchBookmarks=true", "/api/v1/nodes")
        eventually(lambda: watch.seen.count(("BOOKMARK", None)) > 3)
        seen = [name for kind, name in watch.seen if kind == "ADDED"]
        assert seen == ["a", "b", "c"]


def test_a_watch_that_begins_with_what_is_there_says_when_that_was_all(server: ApiServer) -> None:
    """As informers of client-go ask since 1.35: they wait for that bookmark."""
    made(server, SLICES, a_slice("a"))
    query = (
        "watch=true&resourceVersion=0&resourceVersionMatch=NotOlderThan"
        "&sendInitialEvents=true&allowWatchBookmarks=true&timeoutSeconds=0"
    )
    version = server.store.version
    with connection(server) as one:
        one.request("GET", f"{SLICES}?{query}")
        events = [json.loads(line) for line in one.getresponse()]
    assert [event["type"] for event in events] == ["ADDED", "BOOKMARK"]
    assert events[1]["object"]["metadata"] == {
        "resourceVersion": str(version),
        "annotations": {"k8s.io/initial-events-end": "true"},
    }


def test_bookmarks(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.apiserver.server.BOOKMARK_S", 0.05)
    watch = Watch(server, "allowWatchBookmarks=true")
    eventually(lambda: ("BOOKMARK", None) in watch.seen)


def test_status_and_spec_are_written_apart(server: ApiServer) -> None:
    request = {"name": "gpu", "exactly": {"deviceClassName": "gpu.example.com"}}
    body = {"metadata": {"name": "a"}, "spec": {"devices": {"requests": [request]}}}
    allocated: dict[str, Any] = {"allocation": {"devices": {"results": []}}}
    claim = made(server, CLAIMS, {**body, "status": allocated})
    assert "status" not in claim
    path = f"{CLAIMS}/a"
    status, claim = ask(server, "PUT", f"{path}/status", {**claim, "status": allocated, "spec": {}})
    assert (status, claim["spec"], claim["status"]) == (200, body["spec"], allocated)
    assert claim["metadata"]["generation"] == 1
    assert ask(server, "PUT", path, {**claim, "spec": {}})[0] == 422
    status, claim = ask(server, "PUT", path, {**claim, "status": {}})
    assert (status, claim["status"]) == (200, allocated)
    patch = {"status": {"conditions": [{"type": "GPUHealthy", "status": "True"}]}}
    status, node = ask(server, "PATCH", f"/api/v1/nodes/{NODE}/status", patch, STRATEGIC)
    assert [one["type"] for one in node["status"]["conditions"]] == ["Ready", "GPUHealthy"]
    for change in server.store.changes(0)[1]:
        stored = (change.after or {})["metadata"]
        assert isinstance(stored, dict)
        assert stored["resourceVersion"] == str(change.version)
    labels = {"metadata": {"labels": {"a": "b"}}}
    kind = "application/merge-patch+json"
    assert ask(server, "PATCH", f"/api/v1/nodes/{NODE}", labels, kind)[0] == 200
    found = ask(server, "GET", "/api/v1/nodes?labelSelector=a%3Db")[1]["items"]
    assert [one["metadata"]["name"] for one in found] == [NODE]
    assert ask(server, "PATCH", f"/api/v1/nodes/{NODE}", labels, JSON)[0] == 415


def test_what_a_node_owns_goes_with_it(server: ApiServer) -> None:
    uid = ask(server, "GET", f"/api/v1/nodes/{NODE}")[1]["metadata"]["uid"]
    owner = {"apiVersion": "v1", "kind": "Node", "name": NODE, "uid": uid}
    body = a_slice("a")
    body["metadata"]["ownerReferences"] = [owner]
    made(server, SLICES, body)
    made(server, SLICES, a_slice("b"))
    ask(server, "DELETE", f"/api/v1/nodes/{NODE}")
    assert [one["metadata"]["name"] for one in ask(server, "GET", SLICES)[1]["items"]] == ["b"]


def test_rights_that_nobody_has(server: ApiServer) -> None:
    server.denied.add(("watch", "resourceslices"))
    assert ask(server, "GET", SLICES)[0] == 200
    assert ask(server, "GET", f"{SLICES}?watch=1")[0] == 403
    attributes = {"verb": "watch", "resource": "resourceslices", "group": "resource.k8s.io"}
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    for verb, allowed in (("watch", False), ("list", True)):
        spec = {"resourceAttributes": {**attributes, "verb": verb}}
        assert ask(server, "POST", path, {"spec": spec})[1]["status"] == {"allowed": allowed}
    assert ("watch", "resourceslices", "") in server.rights()


def test_a_server_that_lives_long_keeps_the_last_requests_alone(tmp_path: Path) -> None:
    with ApiServer([NODE], most_requests=3) as server:
        for number in range(5):
            ask(server, "GET", f"{SLICES}/{number}")
        assert [one.path[-1] for one in server.requests] == ["2", "3", "4"]
    with cluster(tmp_path) as server:
        with connection(server) as one:
            for _ in range(200):
                one.request("GET", SLICES)
                one.getresponse().read()
        assert len(server.requests) < 150


def test_failures_are_for_those_who_ask_next(server: ApiServer) -> None:
    server.fail(503, path="resourceslices")
    assert ask(server, "GET", f"/api/v1/nodes/{NODE}")[0] == 200
    assert ask(server, "GET", SLICES)[0] == 503
    assert ask(server, "GET", SLICES)[0] == 200
    server.fail(HANG)
    answered = threading.Event()

    def hang() -> None:
        with pytest.raises(OSError, match="closed"):
            ask(server, "GET", SLICES)
        answered.set()

    threading.Thread(target=hang, daemon=True).start()
    eventually(lambda: server.failures_left == 0)
    assert not answered.is_set()
    server.stop()
    assert answered.wait(DEADLINE_S)


def test_a_client_that_leaves_is_nothing_to_tell(
    server: ApiServer, capfd: pytest.CaptureFixture[str]
) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    threads = threading.active_count()
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"GET /version HTTP/1.1\r\n")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    assert ask(server, "GET", "/version")[0] == 200
    eventually(lambda: threading.active_count() <= threads)
    assert capfd.readouterr().err == ""


def test_what_there_is(server: ApiServer) -> None:
    assert ask(server, "GET", "/version")[1]["minor"] == "36"
    (version,) = ask(server, "GET", "/apis/resource.k8s.io")[1]["versions"]
    assert version["groupVersion"] == "resource.k8s.io/v1"
    kinds = {one["kind"] for one in ask(server, "GET", "/apis/resource.k8s.io/v1")[1]["resources"]}
    assert {"ResourceSlice", "ResourceClaim", "DeviceClass"} <= kinds
    assert ask(server, "GET", "/api")[1]["versions"] == ["v1"]
    groups = ask(server, "GET", "/apis")[1]["groups"]
    assert "resource.k8s.io" in {group["name"] for group in groups}
    for path in (
        "/apis/apps/v1/deployments",
        "/api/v1/secrets",
        f"{SLICES}?fieldSelector=spec.x%3D1",
    ):
        assert ask(server, "GET", path)[0] in (400, 404)


def test_kubectl_finds_what_there_is(server: ApiServer, tmp_path: Path) -> None:
    made(server, SLICES, a_slice("a"))
    told = subprocess.run(
        [program("kubectl"), "get", "nodes,resourceslices", "-o", "name"],
        env=os.environ
        | {"KUBECONFIG": str(server.kubeconfig(tmp_path)), "NO_PROXY": "127.0.0.1"}
        | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert told.stdout.split() == ["node/n1", "node/n2", "resourceslice.resource.k8s.io/a"]


def test_a_selector_may_leave_out_several_values_of_a_field(server: ApiServer) -> None:
    pods = "/api/v1/namespaces/default/pods"
    for name, phase in (("runs", "Running"), ("done", "Succeeded"), ("broken", "Failed")):
        made(server, pods, {"metadata": {"name": name}, "spec": {}})
        patch = {"status": {"phase": phase}}
        assert ask(server, "PATCH", f"{pods}/{name}/status", patch, MERGE)[0] == 200
    selector = "fieldSelector=status.phase!=Succeeded,status.phase!=Failed"
    found = ask(server, "GET", f"{pods}?{selector}")[1]["items"]
    assert [one["metadata"]["name"] for one in found] == ["runs"]


def test_a_pod_on_a_node_is_only_marked_until_its_kubelet_removes_it(server: ApiServer) -> None:
    pods = "/api/v1/namespaces/default/pods"
    for name, spec in (("bound", {"nodeName": NODE}), ("free", {})):
        body = {"metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 30, **spec}}
        assert ask(server, "POST", pods, body)[0] == 201

    selector = "?fieldSelector=spec.nodeName!="
    (bound,) = ask(server, "GET", f"/api/v1/pods{selector}")[1]["items"]
    for name in ("bound", "free"):
        assert ask(server, "DELETE", f"{pods}/{name}")[0] == 200

    (left,) = ask(server, "GET", pods)[1]["items"]
    assert bound["metadata"]["name"] == left["metadata"]["name"] == "bound"
    assert left["metadata"]["deletionGracePeriodSeconds"] == 30
    made_at, ends_at = (
        datetime.fromisoformat(left["metadata"][name])
        for name in ("creationTimestamp", "deletionTimestamp")
    )
    assert ends_at >= made_at + timedelta(seconds=30), "when its grace is over"
    del left["metadata"]["deletionTimestamp"]
    assert ask(server, "PUT", f"{pods}/bound", left)[1]["metadata"]["deletionTimestamp"]
    assert ask(server, "DELETE", f"{pods}/bound", {"gracePeriodSeconds": 0})[0] == 200
    assert ask(server, "GET", pods)[1]["items"] == []


def test_a_lease_goes_with_its_node(server: ApiServer) -> None:
    leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    node = ask(server, "GET", f"/api/v1/nodes/{NODE}")[1]
    owner = {"kind": "Node", "name": NODE, "uid": node["metadata"]["uid"]}
    body = {"metadata": {"name": NODE, "ownerReferences": [owner]}, "spec": {}}
    assert ask(server, "POST", leases, body)[0] == 201
    renewal = {"spec": {"renewTime": "2026-01-01T00:00:00.000000Z"}}
    assert ask(server, "PATCH", f"{leases}/{NODE}", renewal, MERGE)[1]["spec"] == renewal["spec"]

    ask(server, "DELETE", f"/api/v1/nodes/{NODE}")

    assert ask(server, "GET", f"{leases}/{NODE}")[0] == 404
