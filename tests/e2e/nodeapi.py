"""A stand-in for the API server's nodes, over real HTTP: get one, and watch it."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, urlsplit

import yaml

from gpuplugin.core.nodechoice import LABEL

if TYPE_CHECKING:
    from pathlib import Path


class NodeApi:
    """One node with one label (`name`); watches are told of each change of it."""

    def __init__(self, node: str, label: str | None = None, name: str = LABEL) -> None:
        self.refuse = 0
        """A status to answer everything with, if it is not 0."""
        self.watches = 0
        self.node = node
        self._label = label
        self._name = name
        self._version = 1
        self._changed = threading.Condition()
        self._stopped = False
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

    def label(self, value: str | None) -> None:
        """Set or take away the node's label."""
        with self._changed:
            self._label = value
            self._version += 1
            self._changed.notify_all()

    def end_watches(self) -> None:
        """As the server does now and then."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def kubeconfig(self, folder: Path) -> Path:
        """A kubeconfig that leads here."""
        path = folder / "kubeconfig"
        host, port = self._server.server_address[:2]
        config = {
            "current-context": "here",
            "clusters": [{"name": "one", "cluster": {"server": f"http://{host!s}:{port}"}}],
            "users": [{"name": "me", "user": {"token": "t"}}],
            "contexts": [{"name": "here", "context": {"cluster": "one", "user": "me"}}],
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def _object(self) -> dict[str, object]:
        labels = {} if self._label is None else {self._name: self._label}
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.node,
                "labels": labels,
                "resourceVersion": str(self._version),
            },
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = parse_qs(url.query)
                if outer.refuse:
                    told = {"kind": "Status", "message": "no", "code": outer.refuse}
                    self._send(outer.refuse, told)
                elif url.path == f"/api/v1/nodes/{outer.node}":
                    self._send(200, outer._object())
                elif url.path == "/api/v1/nodes" and "watch" in query:
                    assert query["fieldSelector"] == [f"metadata.name={outer.node}"]
                    self._watch()
                else:
                    self._send(404, {"kind": "Status", "message": url.path, "code": 404})

            def _send(self, status: int, body: dict[str, object]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _watch(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True
                kind, seen = "ADDED", 0
                with outer._changed:
                    outer.watches += 1
                    while not outer._stopped:
                        event = {"type": kind, "object": outer._object()}
                        self.wfile.write(json.dumps(event).encode() + b"\n")
                        self.wfile.flush()
                        kind, seen = "MODIFIED", outer._version
                        while outer._version == seen and not outer._stopped:
                            outer._changed.wait()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing."""

        return Handler
