"""A server of line sockets: one JSON object per line. The client side: `gpuplugin.linesocket`."""

from __future__ import annotations

import socketserver
import threading
from typing import TYPE_CHECKING, TypeAlias

from gpuplugin.linesocket import ControlError, decode, encode
from sim.socketfile import SocketFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Handler: TypeAlias = Callable[[Mapping[str, object]], Mapping[str, object]]


class LineServer:
    """Serves requests on a unix socket; a handler refuses one with a `ControlError`."""

    def __init__(self, path: Path, handler: Handler) -> None:
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._server = _Server(str(path), _request_handler(handler))
        self._file = SocketFile(path)
        path.chmod(0o600)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._file.remove()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False


def _request_handler(handler: Handler) -> type[socketserver.StreamRequestHandler]:
    class RequestHandler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                self.wfile.write(encode(_response(line, handler)))

    return RequestHandler


def _response(line: bytes, handler: Handler) -> Mapping[str, object]:
    try:
        return handler(decode(line))
    except ControlError as error:
        return {"error": str(error)}
