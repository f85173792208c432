"""What is answered over HTTP: /, /metrics, /health and /ready. Where is listened is in `http`.

Nothing here touches the event loop or the hardware: answers come from the metrics registry and from
the vitals, so a scrape can neither wait for them nor disturb them.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from gpuplugin.daemon.http.metrics import Metrics
    from gpuplugin.daemon.status import Report, Vitals

REQUEST_TIMEOUT_S = 10
_PAGE_HEADERS = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; img-src data:"),
    ("X-Content-Type-Options", "nosniff"),
)

log = logging.getLogger(__name__)


class WebServer(ThreadingWSGIServer):
    """Answers on a socket that listens already, each connection in a thread of its own."""

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


def make_application(
    vitals: Vitals, metrics: Metrics, page: Callable[[], str | None]
) -> WSGIApplication:
    """The pages by their paths."""
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
