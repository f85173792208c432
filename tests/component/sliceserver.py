"""A stand-in for the API server's ResourceSlices: lists, watches, conflicts, features that are off.

Over real HTTP. It refuses what Kubernetes 1.36 refuses of a slice, as far as a GPU driver could get
it wrong.
"""

from __future__ import annotations

import copy
import json
import re
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, urlsplit

from lightkube import KubeConfig

if TYPE_CHECKING:
    from lightkube import SingleConfig

PATH = "/apis/resource.k8s.io/v1/resourceslices"
GATED = {
    "DRAConsumableCapacity": ("allowMultipleAllocations", "requestPolicy"),
    "DRADeviceTaints": ("taints",),
}
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NAME = re.compile(r"([a-z0-9.-]+/)?[A-Za-z_][A-Za-z0-9_]{0,31}")
_SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")


class SliceServer:
    """Slices by name. `off` are feature gates that are off; `failures` answer the next requests."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.node_uid = str(uuid.uuid4())
        self.slices: dict[str, dict[str, Any]] = {}
        self.off: set[str] = set()
        self.failures: list[int] = []
        self.requests: list[tuple[str, str]] = []
        self._version = 100
        self._events: list[tuple[int, str, dict[str, Any]]] = []
        self._oldest = 0
        self._changed = threading.Condition()
        self._stopped = False
        self._generation = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def config(self) -> SingleConfig:
        url = f"http://127.0.0.1:{self._server.server_address[1]}"
        content = {
            "current-context": "here",
            "clusters": [{"name": "one", "cluster": {"server": url}}],
            "users": [{"name": "me", "user": {"token": "secret"}}],
            "contexts": [{"name": "here", "context": {"cluster": "one", "user": "me"}}],
        }
        config = KubeConfig.from_dict(content).get()
        assert config is not None
        return config

    def devices(self) -> list[dict[str, Any]]:
        """Devices of the newest generation, in the order of a scheduler, if it is complete."""
        with self._changed:
            specs = [one["spec"] for _, one in sorted(self.slices.items())]
        newest = max((spec["pool"]["generation"] for spec in specs), default=0)
        chosen = [spec for spec in specs if spec["pool"]["generation"] == newest]
        if not chosen or len(chosen) != chosen[0]["pool"]["resourceSliceCount"]:
            return []
        return [device for spec in chosen for device in spec["devices"]]

    def wipe(self) -> None:
        """As the kubelet does when it starts."""
        with self._changed:
            for name in list(self.slices):
                self._delete(name)

    def break_watches(self, *, forget: bool = False) -> None:
        """End the watches; with `forget` they cannot go on where they were (410 Gone)."""
        with self._changed:
            self._generation += 1
            if forget:
                self._events.clear()
                self._oldest = self._version + 1
                self._version += 1
            self._changed.notify_all()

    def _delete(self, name: str) -> None:
        gone = self.slices.pop(name)
        self._version += 1
        self._record("DELETED", gone)

    def _record(self, kind: str, one: dict[str, Any]) -> None:
        self._events.append((self._version, kind, copy.deepcopy(one)))
        self._changed.notify_all()

    def answer(self, method: str, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        with self._changed:
            self.requests.append((method, path))
            if self.failures:
                code = self.failures.pop(0)
                return code, failure(code, "as the test wants it")
            if path == f"/api/v1/nodes/{self.node}":
                return 200, {
                    "apiVersion": "v1", "kind": "Node",
                    "metadata": {"name": self.node, "uid": self.node_uid},
                }  # fmt: skip
            return self._slice(method, path.removeprefix(PATH).strip("/"), body)

    def _slice(self, method: str, name: str, body: Any) -> tuple[int, dict[str, Any]]:
        if method == "GET":
            return 200, {
                "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSliceList",
                "metadata": {"resourceVersion": str(self._version)},
                "items": list(self.slices.values()),
            }  # fmt: skip
        if method == "POST":
            name = body["metadata"]["name"]
            if name in self.slices:
                return 409, failure(409, f"{name} already exists")
            return self._store(name, body, "ADDED")
        known = self.slices.get(name)
        if known is None:
            return 404, failure(404, f"{name} not found")
        if method == "DELETE":
            self._delete(name)
            return 200, failure(200, "deleted")
        if body["metadata"].get("resourceVersion") != known["metadata"]["resourceVersion"]:
            return 409, failure(409, "the object has been modified")
        return self._store(name, body, "MODIFIED")

    def _store(self, name: str, body: dict[str, Any], kind: str) -> tuple[int, dict[str, Any]]:
        body = copy.deepcopy(body)
        for gate in self.off:
            drop(body["spec"], GATED[gate])
        problems = invalid(body["spec"])
        if problems:
            return 422, failure(422, "; ".join(problems))
        self._version += 1
        for device in body["spec"]["devices"]:
            for taint in device.get("taints", ()):
                taint.setdefault("timeAdded", f"2026-01-01T00:00:{self._version % 60:02}Z")
        before = self.slices.get(name)
        uid = before["metadata"]["uid"] if before else str(uuid.uuid4())
        body["metadata"] |= {"uid": uid, "resourceVersion": str(self._version)}
        body |= {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice"}
        self.slices[name] = body
        self._record(kind, body)
        return 201, body

    def _watch(self, handler: BaseHTTPRequestHandler, since: int) -> None:
        """Write events as they come, until the watch is broken or the server stops."""
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.end_headers()
        generation, version = self._generation, since
        if version < self._oldest:
            gone = {"type": "ERROR", "object": failure(410, "too old resource version")}
            handler.wfile.write(json.dumps(gone).encode() + b"\n")
            return
        while True:
            with self._changed:
                while not (
                    self._stopped
                    or generation != self._generation
                    or any(at > version for at, _, _ in self._events)
                ):
                    self._changed.wait()
                if self._stopped or generation != self._generation:
                    return
                fresh = [event for event in self._events if event[0] > version]
            for at, kind, one in fresh:
                version = max(version, at)
                line = json.dumps({"type": kind, "object": one}).encode() + b"\n"
                handler.wfile.write(line)
                handler.wfile.flush()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = parse_qs(url.query)
                if "watch" in query:
                    version = int(query.get("resourceVersion", ["0"])[0])
                    outer._watch(self, version)
                    return
                length = int(self.headers.get("Content-Length", "0"))
                body = json.loads(self.rfile.read(length) or b"null")
                status, answer = outer.answer(self.command, url.path, body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - http.server's names

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing."""

        return Handler


def drop(value: Any, fields: tuple[str, ...]) -> None:
    """Take fields out of an object, wherever they are."""
    if isinstance(value, dict):
        for field in fields:
            value.pop(field, None)
        for inner in value.values():
            drop(inner, fields)
    elif isinstance(value, list):
        for inner in value:
            drop(inner, fields)


def invalid(spec: dict[str, Any]) -> list[str]:
    """What the API server would refuse of a slice."""
    tainted = any(device.get("taints") for device in spec["devices"])
    found = ["devices: too many"] if len(spec["devices"]) > (64 if tainted else 128) else []
    for device in spec["devices"]:
        names = [*device["attributes"], *device["capacity"]]
        if not _LABEL.fullmatch(device["name"]):
            found.append(f"{device['name']}: not a DNS label")
        if len(names) > 32 or not all(map(_NAME.fullmatch, names)):
            found.append(f"{device['name']}: attributes and capacities {names}")
        found += filter(None, map(_wrong_attribute, device["attributes"].items()))
        shared = device.get("allowMultipleAllocations", False)
        for name, capacity in device["capacity"].items():
            policy = capacity.get("requestPolicy")
            if policy and not shared:
                found.append(f"{name}: a policy of a device that is not shared")
            if policy and name == "shares" and int(capacity["value"]) < 2:
                found.append(f"{name}: one step 2 is larger than capacity value: 1")
    return found


def _wrong_attribute(attribute: tuple[str, dict[str, Any]]) -> str:
    name, value = attribute
    ((kind, content),) = value.items()
    if kind == "version" and not _SEMVER.fullmatch(content):
        return f"{name}: {content} is no semantic version"
    if kind == "string" and len(content.encode()) > 64:
        return f"{name}: longer than 64 bytes"
    return ""


def failure(code: int, message: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code,
        "message": message, "metadata": {},
    }  # fmt: skip
