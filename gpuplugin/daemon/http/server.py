"""The HTTP port: /, /metrics, /health and /ready, on an event loop in a thread of its own.

Nothing here touches the daemon's loop or the hardware: responses are made from metrics, the status
of components and the node's newest view, so a scrape can neither wait for them nor disturb them.

Any pod may connect, so what all peers together may take is bounded: connections, the headers of a
request, the time from a connection to the end of its response, and one page made at a time.
/health and /ready wait for no other request.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import zlib
from concurrent.futures.thread import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs

from gpuplugin.config.values import MAX_PORT
from gpuplugin.daemon.http.textformat import chosen_format, encoded, gzip_accepted, only
from gpuplugin.daemon.logs import log_fact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gpuplugin.daemon.http.textformat import Family
    from gpuplugin.daemon.status import StatusBoard, StatusReport

MAX_CONNECTIONS = 32
"""One more takes the place of the oldest one, of those that still send their request if many do."""
MAX_HEADERS_BYTES = 16 * 1024
"""The request line and all headers of a request."""
EXCHANGE_TIMEOUT_S = 10.0
"""From a connection to the end of its response."""

_PAGE_HEADERS = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; img-src data:"),
    ("X-Content-Type-Options", "nosniff"),
)
_JSON_HEADERS = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))
_METHODS = ("GET", "HEAD")
_GZIP = 16 + zlib.MAX_WBITS
"""The format of gzip (zlib's deflateInit2)."""

_CLOSE_TIMEOUT_S = 2.0
_RESTART_PAUSE_S = 1.0
_WAITING_CONNECTIONS = 128
"""Connections that the kernel keeps until they are accepted."""
_ACCEPTED_AT_ONCE = 4
"""Of a flood of connections; each is read from before it is one of the oldest."""
_SPARED_SENDERS = 2 * _ACCEPTED_AT_ONCE
"""So many that still send do not give way to those that wait: a probe of /health just came."""
_RECEIVE_BUFFER_BYTES = MAX_HEADERS_BYTES
"""The kernel's; without it one connection could hold some hundred KiB."""

log = logging.getLogger(__name__)


class HttpError(Exception):
    """The address cannot be listened on."""


class _Request(NamedTuple):
    path: str
    query: str
    headers: Mapping[str, str]
    """By name in small letters."""


class _Response(NamedTuple):
    status: HTTPStatus
    headers: Iterable[tuple[str, str]]
    body: bytes

    def encoded(self, *, with_body: bool) -> bytes:
        headers = (*self.headers, ("Content-Length", len(self.body)), ("Connection", "close"))
        lines = [f"HTTP/1.1 {self.status.value} {self.status.phrase}"]
        lines += [f"{name}: {value}" for name, value in headers]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        return head + self.body if with_body else head


class HttpServer:
    """Serves from the moment it is made until `close`; `page` makes the HTML of `/`.

    `fresh` is called before a page or metrics are made, in their thread: it may take a moment.
    """

    def __init__(
        self,
        address: str,
        status: StatusBoard,
        metrics: Callable[[], Iterable[Family]],
        page: Callable[[], str],
        fresh: Callable[[], None] = lambda: None,
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
        self.port: int = self._listener.getsockname()[1]
        self._status = status
        self._families = metrics
        self._page = page
        self._fresh = fresh
        self._pages = ThreadPoolExecutor(1, thread_name_prefix="http-page")
        self._open: dict[asyncio.Task[None], bool] = {}
        """The tasks of connections, the oldest first, and whether a request has come as a whole."""
        self._closing = threading.Event()
        self._stop: Callable[[], object] = self._closing.set
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()
        text = f"metrics, health and readiness on http://{host}:{self.port}"
        log_fact(log, logging.INFO, "http", text, port=self.port)

    def close(self) -> None:
        """Stop listening, and break off what is under way."""
        self._closing.set()
        with suppress(RuntimeError):  # its loop has ended
            self._stop()
        self._thread.join(_CLOSE_TIMEOUT_S)
        self._pages.shutdown(wait=False, cancel_futures=True)
        self._listener.close()

    def _run(self) -> None:
        """Serve until `close`, whatever happens: nothing else would start this thread again."""
        while not self._closing.is_set():
            try:
                asyncio.run(self._serve())
            except Exception:
                log.exception("the HTTP port failed; serving it anew", extra={"event": "http"})
                self._closing.wait(_RESTART_PAUSE_S)

    async def _serve(self) -> None:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        self._stop = lambda: loop.call_soon_threadsafe(stopped.set)
        server = await asyncio.start_server(
            self._exchange,
            sock=self._listener.dup(),
            limit=MAX_HEADERS_BYTES,
            backlog=_ACCEPTED_AT_ONCE,
        )
        self._listener.listen(_WAITING_CONNECTIONS)
        try:
            if not self._closing.is_set():
                await stopped.wait()
        finally:
            server.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection: one request, one response."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a stream's handler is a task
        self._make_room()
        self._open[task] = False
        writer.transport.set_write_buffer_limits(0)  # so that `drain` waits until all is sent
        try:
            async with asyncio.timeout(EXCHANGE_TIMEOUT_S):
                try:
                    request = await reader.readuntil(b"\r\n\r\n")
                except asyncio.LimitOverrunError:
                    request = b""
                self._open[task] = True
                writer.write(await self._answer(request))
                await writer.drain()
        except (EOFError, OSError, TimeoutError) as error:
            log.debug("%s", error, extra={"event": "http-dropped"})
        finally:
            self._open.pop(task, None)
            writer.transport.abort()

    def _make_room(self) -> None:
        """Break a connection off if there is one too many."""
        if len(self._open) >= MAX_CONNECTIONS:
            senders = [task for task, complete in self._open.items() if not complete]
            victim = senders[0] if len(senders) > _SPARED_SENDERS else next(iter(self._open))
            del self._open[victim]
            victim.cancel()

    async def _answer(self, request: bytes) -> bytes:
        """The response to a request's line and headers; empty stands for too many of them."""
        asked = _parsed(request) if request else _TOO_LARGE
        try:
            response = asked if isinstance(asked, _Response) else await self._response(asked)
        except Exception:
            log.exception("no response", extra={"event": "http-failed"})
            response = _text(HTTPStatus.INTERNAL_SERVER_ERROR, "It failed; the log has the reason.")
        return response.encoded(with_body=not request.startswith(b"HEAD "))

    async def _response(self, asked: _Request) -> _Response:
        match asked.path:
            case "/health" | "/healthz":
                return _report(self._status.liveness())
            case "/ready" | "/readyz":
                return _report(self._status.readiness())
            case "/metrics":
                return await self._made(self._metrics, asked)
            case "/":
                return await self._made(self._html, asked)
        there_are = "Not found. There are /, /metrics, /health and /ready."
        return _text(HTTPStatus.NOT_FOUND, there_are)

    async def _made(self, make: Callable[[_Request], _Response], asked: _Request) -> _Response:
        """What takes long to make: in a thread, one at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._pages, make, asked)

    def _html(self, _asked: _Request) -> _Response:
        self._fresh()
        return _Response(HTTPStatus.OK, _PAGE_HEADERS, self._page().encode(errors="replace"))

    def _metrics(self, asked: _Request) -> _Response:
        self._fresh()
        content_type = chosen_format(asked.headers.get("accept", ""))
        families, names = self._families(), parse_qs(asked.query).get("name[]")
        body = encoded(only(families, names) if names else families, content_type)
        headers = [("Content-Type", content_type)]
        if gzip_accepted(asked.headers.get("accept-encoding", "")):
            body = zlib.compress(body, wbits=_GZIP)
            headers.append(("Content-Encoding", "gzip"))
        return _Response(HTTPStatus.OK, headers, body)


def _listening(host: str, port: int) -> socket.socket:
    """A listening socket, for 0.0.0.0 on every address of the pod.

    In some clusters pods have no address but one of IPv6; there are kernels without IPv6, too.
    """
    if host == "0.0.0.0" and socket.has_dualstack_ipv6():  # noqa: S104 - what was asked for
        with suppress(OSError):
            return _bound("::", port)
    return _bound(host, port)


def _bound(host: str, port: int) -> socket.socket:
    """Made without a DNS query for the host's name."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # As bytes: for a text Python loads the tables of international names, half a MiB.
    listener = socket.create_server(
        (host.encode() if host.isascii() else host, port),
        family=family,
        backlog=_WAITING_CONNECTIONS,
        # [::] is IPv4's any address, too.
        dualstack_ipv6=family == socket.AF_INET6 and socket.has_dualstack_ipv6(),
    )
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
    return listener


def _parsed(request: bytes) -> _Request | _Response:
    """A request from its line and headers, or the response to one that is not served."""
    line, *fields = request.decode("latin-1").split("\r\n")
    method, _, rest = line.partition(" ")
    target, _, version = rest.rpartition(" ")
    if not version.startswith("HTTP/1.") or not target or " " in target:
        return _text(HTTPStatus.BAD_REQUEST, "Not a request of HTTP/1.1.")
    if method not in _METHODS:
        allowed = ("Allow", ", ".join(_METHODS))
        return _text(HTTPStatus.METHOD_NOT_ALLOWED, "Only GET and HEAD are served.", allowed)
    path, _, query = target.partition("?")
    named = (field.partition(":") for field in fields)
    return _Request(path, query, {name.lower(): value.strip() for name, _, value in named})


def _report(report: StatusReport) -> _Response:
    status = HTTPStatus.OK if report.ok else HTTPStatus.SERVICE_UNAVAILABLE
    body = json.dumps(report.as_json(), indent=2).encode() + b"\n"
    return _Response(status, _JSON_HEADERS, body)


def _text(status: HTTPStatus, text: str, *more_headers: tuple[str, str]) -> _Response:
    headers = (("Content-Type", "text/plain; charset=utf-8"), *more_headers)
    return _Response(status, headers, f"{text}\n".encode())


_TOO_LARGE = _text(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"At most {MAX_HEADERS_BYTES} bytes of headers."
)
