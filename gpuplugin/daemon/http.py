"""The HTTP side: /, /metrics, /health and /ready, served from threads of their own.

Nothing here touches the event loop or the hardware: answers come from the metrics registry and from
the vitals, so a scrape can neither wait for them nor disturb them.
"""

from __future__ import annotations

import json
import logging
import socket
import socketserver
import threading
from contextlib import suppress
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from gpuplugin.daemon.metrics import Metrics
    from gpuplugin.daemon.vitals import Report, Vitals

REQUEST_TIMEOUT_S = 10
_PAGE_HEADERS = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; img-src data:"),
    ("X-Content-Type-Options", "nosniff"),
)
_CLOSE_TIMEOUT_S = 2.0

log = logging.getLogger(__name__)


class HttpError(Exception):
    """The address cannot be listened on."""


class HttpServer:
    """Listens from the moment it is made until `close`; `page` makes the page at `/`, if any."""

    def __init__(
        self,
        address: str,
        vitals: Vitals,
        metrics: Metrics,
        page: Callable[[], str | None] = lambda: None,
    ) -> None:
        host, _, port = address.rpartition(":")
        if not port.isdecimal():
            raise HttpError(f"--listen-address must be HOST:PORT, found {address!r}")
        server_class = _ServerV6 if ":" in host else _Server
        try:
            self._server = make_server(
                host.strip("[]"),
                int(port),
                _application(vitals, metrics, page),
                server_class=server_class,
                handler_class=_QuietHandler,
            )
        except (OSError, OverflowError) as error:
            raise HttpError(
                f"cannot listen on {address}: {error}; choose another --listen-address"
            ) from error
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="http", daemon=True)
        self._thread.start()
        log.info(
            "metrics, health and readiness on http://%s:%d",
            host,
            self.port,
            extra={"event": "http", "port": self.port},
        )

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._server.server_port

    def close(self) -> None:
        """Stop listening; running answers end by themselves."""
        self._closing.set()
        with suppress(OSError):  # wakes the thread that waits for a connection
            socket.create_connection((self._server.server_name, self.port), timeout=1).close()
        self._thread.join(_CLOSE_TIMEOUT_S)
        self._server.server_close()

    def _accept(self) -> None:
        """Wait for connections without polling, so that an idle plugin is idle."""
        while not self._closing.is_set():
            self._server.handle_request()


class _Server(ThreadingWSGIServer):
    daemon_threads = True
    block_on_close = False

    def server_bind(self) -> None:
        """Bind without asking DNS for the host's name, as the standard class does."""
        socketserver.TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)
        self.setup_environ()


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        log.debug(format, *args, extra={"event": "http-request"})


def _application(
    vitals: Vitals, metrics: Metrics, page: Callable[[], str | None]
) -> WSGIApplication:
    exposition: WSGIApplication = make_wsgi_app(metrics.registry)

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        match environ.get("PATH_INFO"):
            case "/metrics":
                return exposition(environ, start_response)
            case "/health" | "/healthz":
                return _answer(vitals.liveness(), start_response)
            case "/ready" | "/readyz":
                return _answer(vitals.readiness(), start_response)
            case "/" if (html := page()) is not None:
                start_response("200 OK", [*_PAGE_HEADERS])
                return [html.encode()]
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"Not here. There are /, /metrics, /health and /ready.\n"]

    return application


def _answer(report: Report, start_response: StartResponse) -> Iterable[bytes]:
    status = "200 OK" if report.ok else "503 Service Unavailable"
    body = json.dumps(report.as_json(), indent=2).encode() + b"\n"
    start_response(status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
    return [body]
