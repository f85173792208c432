"""Listens for HTTP from the start on; what is answered is in `web`, in threads of its own.

The libraries that answer are a tenth of the daemon's start. They are loaded by the first
connection, which the kernel holds until then.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from gpuplugin.config.values import MAX_PORT

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuplugin.daemon.http.metrics import Metrics
    from gpuplugin.daemon.status import Vitals

_CLOSE_TIMEOUT_S = 2.0
_WAITING_CONNECTIONS = 16

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
        if not port.isdecimal() or int(port) > MAX_PORT:
            raise HttpError(f"--listen-address must be HOST:PORT, found {address!r}")
        try:
            self._listener = _listening(host.strip("[]"), int(port))
        except OSError as error:
            raise HttpError(
                f"cannot listen on {address}: {error}; choose another --listen-address"
            ) from error
        self._host, self.port = self._listener.getsockname()[:2]
        self._given = (vitals, metrics, page)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="http", daemon=True)
        self._thread.start()
        log.info(
            "metrics, health and readiness on http://%s:%d",
            host,
            self.port,
            extra={"event": "http", "port": self.port},
        )

    def close(self) -> None:
        """Stop listening; running answers end by themselves."""
        self._closing.set()
        with suppress(OSError):  # wakes the thread that waits for a connection
            socket.create_connection((self._host, self.port), timeout=1).close()
        self._thread.join(_CLOSE_TIMEOUT_S)
        self._listener.close()

    def _accept(self) -> None:
        """Wait for connections without polling, so that an idle plugin is idle."""
        select.select([self._listener], [], [])
        if self._closing.is_set():
            return
        from gpuplugin.daemon.http.responses import WebServer, make_application

        server = WebServer(self._listener, make_application(*self._given))
        while not self._closing.is_set():
            server.handle_request()


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens; nobody asks DNS for the name of the host."""
    if ":" not in host:
        return socket.create_server((host, port), backlog=_WAITING_CONNECTIONS)
    return socket.create_server(
        (host, port),
        family=socket.AF_INET6,
        backlog=_WAITING_CONNECTIONS,
        dualstack_ipv6=socket.has_dualstack_ipv6(),  # [::] is IPv4's any address, too
    )
