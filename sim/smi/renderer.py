"""Renders `nvidia-smi` for containers: a process of its own, which answers at a socket.

Each request is answered by a child, so that one about a GPU that hangs holds up no other. What is
asked is never trusted: requests are small, children few, and none of them lives long.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sim.smi.driver import NODE
from sim.smi.program import Answer, answer

if TYPE_CHECKING:
    from collections.abc import Sequence

VISIBLE: Final = "NVIDIA_VISIBLE_DEVICES"
IDLE_S: Final = 60.0
"""A renderer that nobody asked for so long ends; the next request starts another."""
MOST_CHILDREN: Final = 8
LONGEST_S: Final = 5.0
"""A child that has no answer by then has its client ask again: to that, the program hangs."""
_MOST_REQUEST: Final = 65536 + 8192
_LENGTH = struct.Struct("=I")
_HEAD = struct.Struct("=IiI")
_SOON = Answer(0, "", LONGEST_S)
_LOW_PRIORITY: Final = 10


class _NoRequest(Exception):
    """These bytes are none."""


def serve(listener: socket.socket) -> None:
    """Answer until nobody has asked for a while, or who started this has ended, and with it the
    writer of standard input; the listener is not blocking."""
    children: set[int] = set()
    while True:
        _reap(children, wait=len(children) >= MOST_CHILDREN)
        ready, _, _ = select.select([listener.fileno(), 0], [], [], 1.0 if children else IDLE_S)
        if 0 in ready or (not ready and not children):
            return
        if not ready:
            continue
        try:
            client, _ = listener.accept()
        except OSError:
            continue
        with client:
            child = os.fork()
            if child == 0:
                _answer_and_exit(client)
            children.add(child)


def _reap(children: set[int], *, wait: bool) -> None:
    while children:
        pid, _ = os.waitpid(-1, 0 if wait else os.WNOHANG)
        if pid == 0:
            return
        children.discard(pid)
        wait = False


def _answer_and_exit(client: socket.socket) -> None:
    """In the child. A call to a GPU that hangs does not return, so the deadline is a thread's."""
    once = threading.Lock()

    def send(found: Answer) -> None:
        if once.acquire(blocking=False):
            with suppress(OSError):
                client.sendall(_bytes(found))
            os._exit(0)

    deadline = threading.Timer(LONGEST_S, send, [_SOON])
    deadline.daemon = True
    deadline.start()
    status = 1
    try:
        client.settimeout(LONGEST_S)
        visible, *arguments = _request(client)
        os.environ[VISIBLE] = visible
        send(answer(arguments, os.environ))
    except (_NoRequest, OSError):
        status = 0
    finally:
        os._exit(status)


def _request(client: socket.socket) -> Sequence[str]:
    """The visible devices and the arguments; raises `_NoRequest`."""
    (length,) = _LENGTH.unpack(_received(client, _LENGTH.size))
    if not 0 < length <= _MOST_REQUEST:
        raise _NoRequest
    data = _received(client, length)
    if not data.endswith(b"\0"):
        raise _NoRequest
    return [one.decode("utf-8", "replace") for one in data[:-1].split(b"\0")]


def _received(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = client.recv(size - len(data))
        if not more:
            raise _NoRequest
        data += more
    return data


def _bytes(found: Answer) -> bytes:
    text = f"{found.filename}\0{found.text}".encode()
    again_ms = max(1, round(found.again_s * 1000)) if found.again_s else 0
    length = _HEAD.size - _LENGTH.size + len(text)
    return _HEAD.pack(length, found.status, again_ms) + text


def main() -> None:
    """`FD NVML LIBRARY`: a listening socket, the node's socket, and the library that knows it."""
    descriptor, os.environ[NODE], library = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    # Loaded once for all children; it connects when a child initialises it.
    os.environ["LD_LIBRARY_PATH"] = str(library.parent)
    ctypes.CDLL(str(library))
    os.nice(_LOW_PRIORITY)
    with socket.socket(fileno=descriptor) as listener:
        serve(listener)


if __name__ == "__main__":
    main()
