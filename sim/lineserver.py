"""Local control sockets: one JSON object per line in, one per line out.

Both the simulated node and the kubelet stand-in are steered this way from other processes. What the
objects mean is theirs.
"""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Handler: TypeAlias = Callable[[Mapping[str, object]], Mapping[str, object]]

CONNECT_TIMEOUT_S = 5.0


class ControlError(Exception):
    """The other side refused, or is not there; the text says what to do."""


class LineServer:
    """Serves requests on a unix socket until closed.

    A handler raises `ControlError` to refuse; the text reaches the caller.
    """

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._server = _Server(str(path), _request_handler(handler))
        path.chmod(0o600)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving and remove the socket."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._path.unlink(missing_ok=True)


def ask(path: Path, request: Mapping[str, object], timeout_s: float) -> Mapping[str, object]:
    """Send one request and return its answer.

    Raises:
        ControlError: nobody listens at `path`, no answer came in time, or it was refused.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(CONNECT_TIMEOUT_S)
            connection.connect(str(path))
            connection.settimeout(timeout_s)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
    except TimeoutError as error:
        raise ControlError(f"{path} did not answer within {timeout_s:g} s") from error
    except OSError as error:
        raise ControlError(f"nobody answers at {path}: {error.strerror or error}") from error
    if not line:
        raise ControlError(f"{path} closed the connection without an answer")
    answer: dict[str, object] = json.loads(line)
    if "error" in answer:
        raise ControlError(str(answer["error"]))
    return answer


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False


def _request_handler(handler: Handler) -> type[socketserver.StreamRequestHandler]:
    class RequestHandler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                self.wfile.write(json.dumps(_answer(line, handler)).encode() + b"\n")

    return RequestHandler


def _answer(line: bytes, handler: Handler) -> Mapping[str, object]:
    try:
        request = json.loads(line)
    except ValueError as error:
        return {"error": f"not JSON: {error}"}
    if not isinstance(request, dict):
        return {"error": "a request is a JSON object"}
    try:
        return handler(request)
    except ControlError as error:
        return {"error": str(error)}
