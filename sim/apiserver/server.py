"""The API server over HTTP: addresses, selectors, patches and watches, and failures on purpose.

Threads of the standard library serve it: a handful of local clients, and objects that other threads
of the process look at and change meanwhile.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import parse_qs, urlsplit

import yaml

from sim.apiserver.store import (
    NODES,
    PODS,
    RESOURCES,
    ApiProblem,
    Key,
    Selection,
    Store,
)

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from gpuplugin.core.jsonobject import JsonObject
    from sim.apiserver.store import Resource

JSON: Final = "application/json"
MERGE: Final = "application/merge-patch+json"
STRATEGIC: Final = "application/strategic-merge-patch+json"
TOKEN: Final = "secret"  # noqa: S105 - of a server that lets everybody in
HANG: Final = 0
"""For `ApiServer.fail`: no answer until the server stops."""
BOOKMARK_S = 5.0
"""A watch that asks for bookmarks gets one whenever nothing happened for so long."""

_ROOTS = {f"/apis/{one.api_version}" if one.group else "/api/v1": one.group for one in RESOURCES}
_ADDRESS = re.compile(
    rf"(?P<root>{'|'.join(map(re.escape, _ROOTS))})"
    r"(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?"
    r"(?:/(?P<part>status|binding))?"
)
_REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_VERBS = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
_BY_PLURAL = {(resource.group, resource.plural): resource for resource in RESOURCES}


@dataclass(frozen=True)
class Request:
    """A request as it came; `body` is parsed JSON, None without one."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: JsonObject | None

    @property
    def right(self) -> tuple[str, str, str]:
        """The verb, resource and namespace (empty for the cluster) that RBAC would ask for."""
        found = _ADDRESS.fullmatch(self.path)
        if found is None:
            return self.method.lower(), self.path, ""
        resource = found["plural"] + (f"/{found['part']}" if found["part"] else "")
        verb = _VERBS.get(self.method, "")
        if not verb:
            verb = "watch" if self.watches else "get" if found["name"] else "list"
        elif verb == "delete" and not found["name"]:
            verb = "deletecollection"
        return verb, resource, found["namespace"] or ""

    @property
    def watches(self) -> bool:
        return self.query.get("watch") in ("1", "true")


@dataclass(frozen=True)
class _Failure:
    status: int
    headers: Mapping[str, str]
    body: bytes | None
    path: str


@dataclass(frozen=True)
class Answer:
    """A response; with the status 0 there is none, and the connection ends."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


class ApiServer:
    """A server of `store`, with the nodes of these names; a context manager.

    `requests` are all that came, or the last `most_requests` of them. `denied` are rights (verb,
    resource) that nobody has: such a request is answered with 403.
    """

    def __init__(
        self,
        nodes: Iterable[str] = (),
        store: Store | None = None,
        most_requests: int | None = None,
    ) -> None:
        self.store = store or Store()
        self._most_requests = most_requests
        self.requests: list[Request] = []
        self.denied: set[tuple[str, str]] = set()
        self._failures: deque[_Failure] = deque()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._breaks = 0
        for name in nodes:
            ready: JsonObject = {"type": "Ready", "status": "True"}
            node: JsonObject = {"status": {"conditions": [ready]}}
            self.store.create(Key(NODES, name), node)
        self._server = _Server(self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections from now on. Safe to call twice."""
        if not self._stopped.is_set():
            self._stopped.set()
            self.store.wake()
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def speak_tls(self, context: ssl.SSLContext) -> None:
        """Accept connections by TLS alone from now on."""
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def kubeconfig(self, folder: Path) -> Path:
        """Write a kubeconfig that leads here."""
        path = folder / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "simulated",
            "clusters": [{"name": "simulated", "cluster": {"server": self.url}}],
            "users": [{"name": "anybody", "user": {"token": TOKEN}}],
            "contexts": [
                {"name": "simulated", "context": {"cluster": "simulated", "user": "anybody"}}
            ],
        }
        path.write_text(yaml.safe_dump(config), "utf-8")
        return path

    def fail(
        self,
        status: int,
        times: int = 1,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        path: str = "",
    ) -> None:
        """Answer the next requests (only those whose path contains `path`) with a failure."""
        with self._lock:
            self._failures.extend([_Failure(status, headers or {}, body, path)] * times)

    def mend(self) -> None:
        """Take back the failures that are left; who hangs already goes on hanging."""
        with self._lock:
            self._failures.clear()

    @property
    def failures_left(self) -> int:
        with self._lock:
            return len(self._failures)

    def break_watches(self, *, forget: bool = False) -> None:
        """End the watches; with `forget` they cannot go on where they were (410 Gone)."""
        self._breaks += 1
        if forget:
            self.store.forget()
        self.store.wake()

    def rights(self) -> set[tuple[str, str, str]]:
        """What RBAC would have been asked for."""
        return {request.right for request in self.requests}

    def refusal(self, request: Request) -> Answer | None:
        """Note a request, and answer it if it is to fail or nobody may do this."""
        with self._lock:
            self.requests.append(request)
            if self._most_requests is not None:
                del self.requests[: -self._most_requests]
            failure = None
            if self._failures and self._failures[0].path in request.path:
                failure = self._failures.popleft()
        if failure is None:
            verb, what, _ = request.right
            if (verb, what) in self.denied:
                return _refused(ApiProblem(403, f'"anybody" cannot {verb} resource "{what}"'))
            return None
        if failure.status == HANG:
            self._stopped.wait()
            return Answer(0)
        told = _refused(ApiProblem(failure.status, "as it was asked for"))
        body = told.body if failure.body is None else failure.body
        return Answer(failure.status, body, failure.headers)

    def answer(self, request: Request) -> Answer:
        """Do what a request asks for."""
        try:
            status, body = self._take(request)
        except ApiProblem as problem:
            return _refused(problem)
        return Answer(status, json.dumps(body).encode())

    def watch(self, request: Request, write: Callable[[str, JsonObject], None]) -> None:
        """Write what happens as it comes, until the watch is broken, or its time is over."""
        breaks = self._breaks
        selection, _, _ = self.addressed(request)
        timeout_s = float(request.query.get("timeoutSeconds", "1800"))
        ends_s = time.monotonic() + timeout_s
        bookmarks = request.query.get("allowWatchBookmarks") in ("1", "true")
        version = self._begun(request, selection, write)
        while not self._stopped.is_set() and breaks == self._breaks:
            left_s = ends_s - time.monotonic()
            if left_s <= 0:
                return
            try:
                version, changes = self.store.changes(version)
            except ApiProblem as problem:
                write("ERROR", problem.as_json())
                return
            for change in changes:
                if (seen := change.seen_by(selection)) is not None:
                    write(*seen)
            if changes:
                continue
            newest = self.store.wait(version, min(left_s, BOOKMARK_S))
            if bookmarks and newest == version:
                write("BOOKMARK", _bookmark(selection.resource, version))

    def _begun(
        self, request: Request, selection: Selection, write: Callable[[str, JsonObject], None]
    ) -> int:
        """The version that a watch goes on from; what is there by then is written if it is asked
        for, or if no version is given."""
        version = int(request.query.get("resourceVersion") or 0)
        streams = request.query.get("sendInitialEvents") in ("1", "true")
        if version and not streams:
            return version
        version, bodies = self.store.select(selection)
        for body in bodies:
            write("ADDED", body)
        if streams:
            write("BOOKMARK", _bookmark(selection.resource, version, at_start=True))
        return version

    def _take(self, request: Request) -> tuple[int, JsonObject]:
        if request.method == "GET" and (found := self._discovered(request.path)) is not None:
            return 200, found
        if request.path == _REVIEW and request.method == "POST":
            return 201, self._reviewed(request)
        selection, name, part = self.addressed(request)
        if name or request.method == "POST":
            return self._take_one(request, Key(selection.resource, name, selection.namespace), part)
        if request.method == "GET":
            version, items = self.store.select(selection)
        elif request.method == "DELETE":
            items = self.store.delete_all(selection)
            version = self.store.version
        else:
            raise ApiProblem(405, "the server does not allow this method on the requested resource")
        return 200, {
            "apiVersion": selection.resource.api_version,
            "kind": f"{selection.resource.kind}List",
            "metadata": {"resourceVersion": str(version)},
            "items": items,
        }

    def _take_one(self, request: Request, key: Key, part: str) -> tuple[int, JsonObject]:
        body = request.body if isinstance(request.body, dict) else {}
        dry_run = request.query.get("dryRun") == "All"
        kind = request.headers.get("content-type", "").partition(";")[0]
        wanted = {"POST": (JSON,), "PUT": (JSON,), "PATCH": (MERGE, STRATEGIC)}
        if kind not in wanted.get(request.method, (kind,)):
            raise ApiProblem(415, f"the body of the request was in an unknown format: {kind!r}")
        match request.method:
            case "GET":
                return 200, self.store.get(key)
            case "POST" if part == "binding" and key.resource is PODS:
                target = body.get("target")
                node = target.get("name") if isinstance(target, dict) else None
                self.store.patch(key, {"spec": {"nodeName": node}})
                return 201, {"kind": "Status", "apiVersion": "v1", "status": "Success"}
            case "POST" if not key.name:
                metadata = body.get("metadata")
                name = metadata.get("name") if isinstance(metadata, dict) else None
                named = Key(key.resource, str(name or ""), key.namespace)
                return 201, self.store.create(named, body, dry_run=dry_run)
            case "PUT":
                return 200, self.store.replace(key, body, status=part == "status", dry_run=dry_run)
            case "PATCH":
                return 200, self.store.patch(
                    key,
                    body,
                    strategic=kind == STRATEGIC,
                    status=part == "status",
                    dry_run=dry_run,
                )
            case "DELETE":
                preconditions = body.get("preconditions")
                return 200, self.store.delete(
                    key,
                    preconditions if isinstance(preconditions, dict) else None,
                    self._grace_s(key, body, request),
                )
            case _:
                raise ApiProblem(405, "the server does not allow this method")

    def _grace_s(self, key: Key, body: JsonObject, request: Request) -> int:
        """As requested, else as the pod has it; a pod that says nothing goes at once."""
        asked = body.get("gracePeriodSeconds", request.query.get("gracePeriodSeconds"))
        if asked is None and key.resource is PODS:
            spec = self.store.get(key).get("spec")
            asked = spec.get("terminationGracePeriodSeconds") if isinstance(spec, dict) else None
        try:
            return int(str(asked or 0))
        except ValueError:
            raise ApiProblem(400, f"gracePeriodSeconds: {asked!r} is no number") from None

    def addressed(self, request: Request) -> tuple[Selection, str, str]:
        """The kind and the selected ones, the name of one (or ""), and the part of it (or "")."""
        found = _ADDRESS.fullmatch(request.path)
        resource = found and _BY_PLURAL.get((_ROOTS[found["root"]], found["plural"]))
        if found is None or not resource:
            raise ApiProblem(404, "the server could not find the requested resource")
        if (
            resource.namespaced
            and not found["namespace"]
            and (found["name"] or request.method == "POST")
        ):
            raise ApiProblem(404, "the server could not find the requested resource")
        fields, unlike = _selector(request.query.get("fieldSelector", ""))
        labels, unlike_labels = _selector(request.query.get("labelSelector", ""))
        if unlike_labels:
            raise ApiProblem(400, "this server knows label selectors of the form name=value")
        selection = Selection(resource, found["namespace"] or "", fields, labels, unlike)
        return selection, found["name"] or "", found["part"] or ""

    def _reviewed(self, request: Request) -> JsonObject:
        """Whether a right is there: a SelfSubjectAccessReview."""
        body = request.body if isinstance(request.body, dict) else {}
        spec = body.get("spec")
        asked = spec.get("resourceAttributes") if isinstance(spec, dict) else None
        asked = asked if isinstance(asked, dict) else {}
        what = "/".join(filter(None, (str(asked.get("resource", "")), asked.get("subresource"))))
        allowed = (str(asked.get("verb", "")), what) not in self.denied
        return {**body, "status": {"allowed": allowed}}

    def _discovered(self, path: str) -> JsonObject | None:
        """The server's version, and what it has; None for another path."""
        if path == "/version":
            minor = self.store.minor
            return {"major": "1", "minor": str(minor), "gitVersion": f"v1.{minor}.0"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
        groups = {f"/apis/{one.group}": _group(one) for one in RESOURCES if one.group}
        if path == "/apis":
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": list(groups.values())}
        if (group := groups.get(path)) is not None:
            return {"kind": "APIGroup", "apiVersion": "v1", **group}
        if path in _ROOTS:
            here = [one for one in RESOURCES if one.group == _ROOTS[path]]
            return {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": path.removeprefix("/apis/").removeprefix("/api/"),
                "resources": [_told(one) for one in here],
            }
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, api: ApiServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.api = api

    def handle_error(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        """Say nothing of a client that leaves."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _bookmark(resource: Resource, version: int, *, at_start: bool = False) -> JsonObject:
    """The version of a watch; `at_start`, that all objects of before were sent (client-go)."""
    metadata: JsonObject = {"resourceVersion": str(version)}
    if at_start:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}


def _refused(problem: ApiProblem) -> Answer:
    return Answer(problem.code, json.dumps(problem.as_json()).encode())


def _group(resource: Resource) -> JsonObject:
    """The group of a resource, as clients discover it."""
    version = {"groupVersion": resource.api_version, "version": resource.version}
    return {"name": resource.group, "versions": [version], "preferredVersion": version}


def _told(resource: Resource) -> JsonObject:
    verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
    return {
        "name": resource.plural,
        "singularName": resource.kind.lower(),
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": verbs,
    }


def _selector(text: str) -> tuple[dict[str, str], tuple[tuple[str, str], ...]]:
    """The pairs of `a=b,c!=d`, equal and unequal; raises `ApiProblem` for other forms."""
    equal: dict[str, str] = {}
    unequal: list[tuple[str, str]] = []
    for part in filter(None, text.split(",")):
        name, equals, value = part.replace("==", "=").partition("=")
        if not equals or " " in part:
            raise ApiProblem(400, f"this server knows selectors of the form name=value: {text!r}")
        if name.endswith("!"):
            unequal.append((name.removesuffix("!"), value))
        else:
            equal[name] = value
    return equal, tuple(unequal)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def _api(self) -> ApiServer:
        assert isinstance(self.server, _Server)  # noqa: S101 - for the type checker
        return self.server.api

    def do_POST(self) -> None:
        request = self._request()
        if request is None:
            self._send(_refused(ApiProblem(400, "the body is no JSON")))
        elif (refusal := self._api.refusal(request)) is not None:
            self._send(refusal)
        elif request.watches:
            self._watch(request)
        else:
            self._send(self._api.answer(request))

    do_PATCH = do_GET = do_PUT = do_DELETE = do_POST  # noqa: N815 - http.server's names

    def _request(self) -> Request | None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length", "0"))
        try:
            body = json.loads(self.rfile.read(length) or b"null")
        except ValueError:
            return None
        return Request(
            self.command,
            url.path,
            {name: values[-1] for name, values in parse_qs(url.query).items()},
            {key.lower(): value for key, value in self.headers.items()},
            body,
        )

    def _send(self, answer: Answer) -> None:
        if not answer.status:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for key, value in ({"Content-Type": JSON} | dict(answer.headers)).items():
            if value:
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def _watch(self, request: Request) -> None:
        try:
            self._api.addressed(request)
        except ApiProblem as problem:
            self._send(_refused(problem))
            return
        self.send_response(200)
        self.send_header("Content-Type", JSON)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            self._api.watch(request, self._write_event)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True

    def _write_event(self, kind: str, body: JsonObject) -> None:
        line = json.dumps({"type": kind, "object": body}).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""
