"""Whether somebody answers at a unix socket, within a deadline."""

from __future__ import annotations

import errno
import socket
import stat
from typing import TYPE_CHECKING

from gpuplugin.doctor.facts import SocketFact, SocketState

if TYPE_CHECKING:
    from pathlib import Path

    from gpuplugin.doctor.look.hostroot import HostRoot

_TIMEOUT_S = 2.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""An empty SETTINGS frame of HTTP/2: both sides begin with one."""
_FRAME_BYTES, _TYPE, _SETTINGS_TYPE = 9, 3, 4


def look_at_socket(host: HostRoot, path: str, *, grpc: bool) -> SocketFact:
    """The state of a socket; one of gRPC has to greet as HTTP/2 does."""
    return SocketFact(path, _state(host.at(path), grpc=grpc))


def _state(path: Path, *, grpc: bool) -> SocketState:
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return SocketState.NO_SOCKET
    except PermissionError:
        return SocketState.DENIED
    except (OSError, ValueError):
        return SocketState.MISSING
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_TIMEOUT_S)
        try:
            client.connect(str(path))
            return SocketState.ANSWERS if not grpc or _greets(client) else SocketState.SILENT
        except TimeoutError:
            return SocketState.SILENT
        except PermissionError:
            return SocketState.DENIED
        except OSError as error:
            # A path that is too long for a socket was never listened on, either.
            gone = error.errno in (errno.ECONNREFUSED, errno.ENOENT, None)
            return SocketState.REFUSED if gone else SocketState.SILENT


def _greets(client: socket.socket) -> bool:
    client.sendall(_PREFACE + _SETTINGS)
    head = b""
    while len(head) < _FRAME_BYTES:
        part = client.recv(_FRAME_BYTES - len(head))
        if not part:
            return False
        head += part
    return head[_TYPE] == _SETTINGS_TYPE
