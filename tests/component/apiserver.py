"""A stand-in for the Kubernetes API server, over real HTTP: Events, and one node's status.

It keeps what it was sent as the real one would (a known name is a conflict, conditions are merged
by type), and can be told to fail.
"""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, urlsplit

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

JSON = "application/json"
STRATEGIC = "application/strategic-merge-patch+json"
TOKEN = "secret"
VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}

_EVENTS = re.compile(r"/api/v1/namespaces/(?P<namespace>[^/]+)/events(?:/(?P<name>[^/]+))?")
_STATUS = re.compile(r"/api/v1/nodes/(?P<name>[^/]+)/status")
_READY = {
    "type": "Ready",
    "status": "False",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
    "lastHeartbeatTime": "2026-01-01T00:00:00Z",
}


@dataclass(frozen=True)
class Request:
    """A request as it came."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: Any

    @property
    def right(self) -> tuple[str, str, str]:
        """The verb, resource and namespace (empty for the cluster) that RBAC would ask for."""
        events = _EVENTS.fullmatch(self.path)
        if events:
            return VERBS[self.method], "events", events["namespace"]
        resource = "nodes/status" if _STATUS.fullmatch(self.path) else self.path
        return VERBS[self.method], resource, ""


@dataclass(frozen=True)
class Failure:
    """An answer that is no success; `status` None hangs until the server is stopped."""

    status: int | None
    headers: Mapping[str, str]
    body: bytes | None
    path: str


class ApiServer:
    """The server and what it holds. `requests` are all that came, `failures` wait for the next."""

    def __init__(self, node: str) -> None:
        self.node: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node},
            "status": {"conditions": [_READY]},
        }
        self.events: dict[str, dict[str, Any]] = {}
        self.requests: list[Request] = []
        self._failures: deque[Failure] = deque()
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
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
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def condition(self) -> dict[str, Any] | None:
        """The condition GPUHealthy of the node."""
        conditions = self.node["status"]["conditions"]
        return next((one for one in conditions if one["type"] == "GPUHealthy"), None)

    def rights(self) -> set[tuple[str, str, str]]:
        """What RBAC would have been asked for."""
        return {request.right for request in self.requests}

    def fail(
        self,
        status: int | None,
        times: int = 1,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        path: str = "",
    ) -> None:
        """Answer the next requests (only those whose path contains `path`) with a failure."""
        self._failures.extend([Failure(status, headers or {}, body, path)] * times)

    def kubeconfig(self, folder: Path) -> Path:
        """Write a kubeconfig that leads here."""
        path = folder / "kubeconfig"
        config = {
            "current-context": "here",
            "clusters": [{"name": "one", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": {"token": TOKEN}}],
            "contexts": [{"name": "here", "context": {"cluster": "one", "user": "me"}}],
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def answer(self, request: Request) -> tuple[int, Mapping[str, str], bytes] | None:
        """Take a request: status, headers and body of the answer; None is no answer at all."""
        with self._lock:
            self.requests.append(request)
            failure = self._failure_for(request)
            if failure is None:
                status, body = self._take(request)
                return status, {}, json.dumps(body).encode()
        if failure.status is None:
            self._stopped.wait()
            return None
        told = json.dumps(_status(failure.status, "as the test wants it")).encode()
        return failure.status, failure.headers, told if failure.body is None else failure.body

    def _failure_for(self, request: Request) -> Failure | None:
        if self._failures and self._failures[0].path in request.path:
            return self._failures.popleft()
        return None

    def _take(self, request: Request) -> tuple[int, Mapping[str, Any]]:
        wanted = STRATEGIC if request.method == "PATCH" else JSON
        if request.headers.get("content-type") != wanted:
            return 415, _status(415, "unsupported media type")
        events, node = _EVENTS.fullmatch(request.path), _STATUS.fullmatch(request.path)
        if events:
            return self._take_event(request, events["name"])
        if node and request.method == "PATCH" and node["name"] == self.node["metadata"]["name"]:
            for one in request.body.get("status", {}).get("conditions", []):
                conditions = self.node["status"]["conditions"]
                old = next((had for had in conditions if had["type"] == one["type"]), None)
                if old is None:
                    conditions.append(one)
                else:
                    old.update(one)
            return 200, self.node
        return 404, _status(404, "not found")

    def _take_event(self, request: Request, name: str | None) -> tuple[int, Mapping[str, Any]]:
        if request.method == "POST" and name is None:
            name = request.body["metadata"]["name"]
            if name in self.events:
                return 409, _status(409, f'events "{name}" already exists')
            self.events[name] = request.body
            return 201, request.body
        if request.method == "PATCH" and name in self.events:
            self.events[name].update(request.body)
            return 200, self.events[name]
        return 404, _status(404, f'events "{name}" not found')

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", "0"))
                url = urlsplit(self.path)
                answer = outer.answer(
                    Request(
                        self.command,
                        url.path,
                        parse_qs(url.query),
                        {key.lower(): value for key, value in self.headers.items()},
                        json.loads(self.rfile.read(length) or b"null"),
                    )
                )
                if answer is None:
                    self.close_connection = True
                    return
                status, headers, body = answer
                self.send_response(status)
                for key, value in ({"Content-Type": JSON} | dict(headers)).items():
                    if value:
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_PATCH = do_GET = do_PUT = do_DELETE = do_POST  # noqa: N815 - http.server's names

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing."""

        return Handler


def _status(code: int, message: str) -> dict[str, Any]:
    """A failure as Kubernetes words it."""
    return {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "code": code,
        "message": message,
    }
