"""The HTTP port: /, /metrics, /health and /ready, in threads of their own.

Nothing here touches the event loop or the hardware: responses are made from metrics, the status of
components and the node's newest view, so a scrape can neither wait for them nor disturb them.
"""

from __future__ import annotations

import json
import logging
import select
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from gpuplugin.config.values import MAX_PORT
from gpuplugin.daemon.logs import log_fact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from prometheus_client import CollectorRegistry

    from gpuplugin.daemon.status import StatusBoard, StatusReport

REQUEST_TIMEOUT_S = 10
_PAGE_HEADERS = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; img-src data:"),
    ("X-Content-Type-Options", "nosniff"),
)

_CLOSE_TIMEOUT_S = 2.0
_WAITING_CONNECTIONS = 16

log = logging.getLogger(__name__)


class HttpError(Exception):
    """The address cannot be listened on."""


class HttpServer:
    """Serves from the moment it is made until `close`; `page` makes the HTML of `/`."""

    def __init__(
        self,
        address: str,
        status: StatusBoard,
        registry: CollectorRegistry,
        page: Callable[[], str],
    ) -> None:
        host, _, port = address.rpartition(":")
        if not port.isdecimal() or int(port) > MAX_PORT:
            raise HttpError(f"--listen-address must be HOST:PORT, found {address!r}")
        try:
            self._listener = _listening(host.strip("[]"), int(port))
        except OSError as error:
            raise HttpError(
                f"cannot listen on {address}: {error}; choose another --listen-address"
            ) from error
        self._host, self.port = self._listener.getsockname()[:2]
        self._server = _Server(self._listener, _application(status, registry, page))
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="http", daemon=True)
        self._thread.start()
        text = f"metrics, health and readiness on http://{host}:{self.port}"
        log_fact(log, logging.INFO, "http", text, port=self.port)

    def close(self) -> None:
        """Stop listening; running responses end by themselves."""
        self._closing.set()
        with suppress(OSError):  # wakes the thread that waits for a connection
            socket.create_connection((self._host, self.port), timeout=1).close()
        self._thread.join(_CLOSE_TIMEOUT_S)
        self._listener.close()

    def _accept(self) -> None:
        """Wait for connections without polling, so that an idle plugin is idle."""
        while not self._closing.is_set():
            select.select([self._listener], [], [])
            if not self._closing.is_set():
                self._server.handle_request()


def _listening(host: str, port: int) -> socket.socket:
    """A listening socket, made without a DNS query for the host's name."""
    if ":" not in host:
        return socket.create_server((host, port), backlog=_WAITING_CONNECTIONS)
    return socket.create_server(
        (host, port),
        family=socket.AF_INET6,
        backlog=_WAITING_CONNECTIONS,
        dualstack_ipv6=socket.has_dualstack_ipv6(),  # [::] is IPv4's any address, too
    )


class _Server(ThreadingWSGIServer):
    """Serves a socket that listens already, each connection in a thread of its own."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, application: WSGIApplication) -> None:
        self.address_family = listener.family
        host, port = listener.getsockname()[:2]
        super().__init__((host, port), _QuietHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = str(host), port
        self.setup_environ()
        self.set_app(application)


class _QuietHandler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        log.debug(format, *args, extra={"event": "http-request"})


def _application(
    status: StatusBoard, registry: CollectorRegistry, page: Callable[[], str]
) -> WSGIApplication:
    exposition: WSGIApplication = make_wsgi_app(registry)

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        match environ.get("PATH_INFO"):
            case "/metrics":
                return exposition(environ, start_response)
            case "/health" | "/healthz":
                return _status(status.liveness(), start_response)
            case "/ready" | "/readyz":
                return _status(status.readiness(), start_response)
            case "/":
                html = page()
                start_response("200 OK", [*_PAGE_HEADERS])
                return [html.encode()]
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"Not found. There are /, /metrics, /health and /ready.\n"]

    return application


def _status(report: StatusReport, start_response: StartResponse) -> Iterable[bytes]:
    status = "200 OK" if report.ok else "503 Service Unavailable"
    body = json.dumps(report.as_json(), indent=2).encode() + b"\n"
    start_response(status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
    return [body]
