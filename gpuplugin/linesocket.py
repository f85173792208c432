"""One JSON object per line over a local unix socket: what is asked, and how it is read.

Servers are elsewhere: the daemon's is `gpuplugin.daemon.control`.
"""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONNECT_TIMEOUT_S = 5.0


class ControlError(Exception):
    """The other side refused, or is not there; the text says what to do."""


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
            connection.sendall(encode(request))
            with connection.makefile("rb") as stream:
                line = stream.readline()
    except TimeoutError as error:
        raise ControlError(f"{path} did not answer within {timeout_s:g} s") from error
    except OSError as error:
        raise ControlError(f"nobody answers at {path}: {error.strerror or error}") from error
    if not line:
        raise ControlError(f"{path} closed the connection without an answer")
    answer = decode(line)
    if "error" in answer:
        raise ControlError(str(answer["error"]))
    return answer


def encode(message: Mapping[str, object]) -> bytes:
    """A request or an answer as a line."""
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> Mapping[str, object]:
    """A request or an answer from a line.

    Raises:
        ControlError: it is no JSON object.
    """
    try:
        message: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ControlError(f"not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ControlError("a message is a JSON object")
    return message
