"""What a hostile or broken peer may do to the plugin: attacks, each for some seconds.

They are for a plugin of one's own on this machine. Each runs in a process of its own and wants
nothing but a `Target`; `benchmarks.siege` measures what the plugin does meanwhile.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuplugin.daemon.control import SOCKET_NAME
from gpuplugin.daemon.serving.sockets import KubeletDirs
from gpuplugin.rpc.client import CallFailed, Connection, Method
from sim.node.control import control_socket, inject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

ALLOCATE = Method.of("/v1beta1.DevicePlugin/Allocate")
WATCH = Method.of("/v1beta1.DevicePlugin/ListAndWatch")
TIMEOUT_S = 10.0
SECOND_PLUGIN = "plugin: a second one"
SECOND_S = 4.0
"""What lives for less than the two seconds between two looks may go unseen."""
GOOD = "version: v1\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 10}]}}\n"
"""The configuration that the plugin of a siege has; an attack on the file writes it again."""


@dataclass(frozen=True)
class Target:
    """A plugin that runs: its process, HTTP port, `--kubelet-dir` and `--config-file`."""

    pid: int
    port: int
    kubelet_dir: Path
    config_file: Path
    for_s: float

    @property
    def device_socket(self) -> Path:
        """Raises `FileNotFoundError` while the plugin has none."""
        found = next(self._folder.glob("gpuplugin-nvidia*.sock"), None)
        if found is None:
            raise FileNotFoundError(f"no device socket in {self._folder}")
        return found

    @property
    def control_socket(self) -> Path:
        return self._folder / SOCKET_NAME

    @property
    def _folder(self) -> Path:
        return KubeletDirs(self.kubelet_dir).plugin_watcher


def nothing(target: Target) -> None:
    time.sleep(target.for_s)


def large_headers(target: Target) -> None:
    """60 connections, each with 99 headers of 64 KB."""
    with _many_http(target, 60) as peers:
        for peer in peers:
            with suppress(OSError):
                peer.sendall(b"GET /metrics HTTP/1.1\r\n")
                for number in range(99):
                    peer.sendall(b"X-%d: " % number + b"x" * 65_000 + b"\r\n")


def slow_requests(target: Target) -> None:
    """Hundreds of connections that never finish their request."""
    with _many_http(target, 300) as peers:
        for peer in peers:
            with suppress(OSError):
                peer.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")


def unread_pages(target: Target) -> None:
    """Requests for the metrics and the page whose responses are never read."""
    with _many_http(target, 100) as peers:
        for number, peer in enumerate(peers):
            with suppress(OSError):
                peer.sendall(b"GET %s HTTP/1.1\r\n\r\n" % (b"/metrics", b"/")[number % 2])


def unfinished_requests(target: Target) -> None:
    """15 connections with 16 requests of 4 MB each, which lack their last bytes."""
    _on_device_socket(target, 15, unfinished_bytes())


def garbage(target: Target) -> None:
    """Bytes that are no HTTP/2, and frames that are no requests."""
    chance = random.Random(1)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
    end_s = time.monotonic() + target.for_s
    while time.monotonic() < end_s:
        kind, stream = chance.randrange(12), chance.randrange(4)
        body = frame(kind, chance.randrange(256), stream, chance.randbytes(chance.randrange(200)))
        with suppress(OSError), _device_peer(target) as peer:
            peer.sendall(preface + body * 50 if chance.random() < 0.8 else chance.randbytes(4_000))


def empty_containers(target: Target) -> None:
    """Legal requests of millions of empty containers and ids."""
    contents = (b"\x0a\x00" * 2_000_000, b"\x0a\xfc\xff\xff\x01" + b"\x0a\x00" * 2_000_000)
    _call(target, contents)


def large_requests(target: Target) -> None:
    """Requests of more than 4 MiB."""
    _call(target, (bytes(4 * 1024 * 1024 + 1),))


def many_streams(target: Target) -> None:
    """90 clients that watch the device list and read nothing of it."""
    with ExitStack() as stack:
        end_s = time.monotonic() + target.for_s
        for _ in range(90):
            with suppress(OSError, CallFailed):
                connection = stack.enter_context(Connection(target.device_socket, TIMEOUT_S))
                connection.start(WATCH, b"", streaming=True)
        time.sleep(max(0.0, end_s - time.monotonic()))


def many_connections(target: Target) -> None:
    """Connections that come and go, and some that stay and say nothing."""
    with ExitStack() as stack:
        end_s = time.monotonic() + target.for_s
        for number in range(1_000_000):
            if time.monotonic() >= end_s:
                return
            with suppress(OSError):
                peer = _device_peer(target)
                if number < 100:
                    stack.enter_context(peer)
                else:
                    peer.close()


def nested_questions(target: Target) -> None:
    """Questions to the control socket that are nested without end, or never end."""
    end_s = time.monotonic() + target.for_s
    while time.monotonic() < end_s:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(TIMEOUT_S)
            peer.connect(str(target.control_socket))
            peer.sendall(b"[" * 60_000 + b"\n")
            peer.recv(1)
        with suppress(OSError), socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(target.control_socket))
            peer.setblocking(False)
            peer.send(b"[" * 200_000)


def odd_requests(target: Target) -> None:
    """Requests of other methods, targets and versions, with bodies, or that are no HTTP."""
    chance = random.Random(2)
    methods = (
        b"GET",
        b"HEAD",
        b"POST",
        b"PUT",
        b"DELETE",
        b"TRACE",
        b"CONNECT",
        b"PRI",
        b"get",
        b"",
    )
    paths = (b"/health", b"/metrics", b"/", b"*", b"//", b"/%00", b"http://x/", b"/" + b"a" * 9_000)
    versions = (b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b"", b"\xff")
    bodies = (
        b"\r\n",
        b"Content-Length: 99999999999\r\n\r\n" + b"x" * 1_000,
        b"Content-Length: -1\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n" + b"x" * 1_000,
        b"\0" * 500,
    )
    end_s = time.monotonic() + target.for_s
    while time.monotonic() < end_s:
        line = b" ".join((chance.choice(methods), chance.choice(paths), chance.choice(versions)))
        with suppress(OSError), _http_peer(target) as peer:
            peer.sendall(line + b"\r\n" + chance.choice(bodies))
            peer.recv(1_000)


def scrapes(target: Target) -> None:
    """Eight clients that ask for the metrics and the page without a pause, and read everything."""

    def scrape(path: bytes) -> None:
        while time.monotonic() < end_s:
            with suppress(OSError), _http_peer(target) as peer:
                peer.sendall(b"GET %s HTTP/1.1\r\n\r\n" % path)
                while peer.recv(65_536):
                    pass

    end_s = time.monotonic() + target.for_s
    paths = (b"/metrics", b"/", b"/ready", b"/health") * 2
    threads = [threading.Thread(target=scrape, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def empty_file(target: Target) -> None:
    """A configuration file that was emptied."""
    _bad_file(target, lambda path: path.write_text(""))


def fifo_file(target: Target) -> None:
    """A FIFO in place of the configuration file: nothing ever comes of it."""
    _bad_file(target, os.mkfifo)


def digits_file(target: Target) -> None:
    """A number of replicas with 1,000 digits."""
    _bad_file(target, lambda path: path.write_text(GOOD.replace("10", "9" * 1_000)))


def sparse_file(target: Target) -> None:
    """A file of 1 GiB that takes no room on the disk."""

    def write(path: Path) -> None:
        with path.open("wb") as stream:
            stream.truncate(1024**3)

    _bad_file(target, write)


def keys_file(target: Target) -> None:
    """90,000 unknown keys."""
    text = GOOD + "".join(f"k{number}: 1\n" for number in range(90_000))
    _bad_file(target, lambda path: path.write_text(text))


def deep_file(target: Target) -> None:
    """Lists that are nested without end."""
    _bad_file(target, lambda path: path.write_text("[" * 500_000))


def _bad_file(target: Target, write: Callable[[Path], object]) -> None:
    """Put a file in place of the configuration and have it read, again and again; then mend it."""
    for _ in range(3):
        fresh = target.config_file.with_suffix(".new")
        write(fresh)
        fresh.replace(target.config_file)
        os.kill(target.pid, signal.SIGHUP)
        time.sleep(target.for_s / 3)
    target.config_file.unlink()
    target.config_file.write_text(GOOD)
    os.kill(target.pid, signal.SIGHUP)


def fault_storm(target: Target) -> None:
    """Application errors on every GPU, a hundred times a second: none of them is a fault."""
    end_s = time.monotonic() + target.for_s
    while time.monotonic() < end_s:
        for gpu in range(8):
            _inject(target, gpu, {"kind": "xid", "xid": 13})
        time.sleep(0.08)


def hanging_driver(target: Target) -> None:
    """The calls about one GPU do not return, then those about any."""
    _inject(target, 7, {"kind": "hang", "for_s": target.for_s / 2})
    time.sleep(target.for_s / 2)
    _inject(target, None, {"kind": "driver-hang", "for_s": target.for_s / 2})
    time.sleep(target.for_s / 2)


def lying_driver(target: Target) -> None:
    """UUIDs of garbage, sensors that are all bits set, and every fifth other call fails."""
    for_s = target.for_s * 0.9
    lies: tuple[Mapping[str, object], ...] = (
        {"calls": ["description", "memory"], "code": "UNKNOWN", "every": 5},
        {"calls": ["sensors", "processes"], "value": 0xFFFFFFFF},
        {"calls": ["nvmlDeviceGetUUID"], "value": "hex:" + "ff " * 80},
    )
    for lie in lies:
        _inject(target, 7, {"kind": "returns", "for_s": for_s, **lie})
    time.sleep(target.for_s)


def endless_count(target: Target) -> None:
    """The driver counts 4,294,967,295 GPUs."""
    lie = {"calls": ["nvmlDeviceGetCount"], "value": 0xFFFFFFFF, "for_s": target.for_s * 0.9}
    _inject(target, None, {"kind": "driver-returns", **lie})
    time.sleep(target.for_s)


def replaced_gpus(target: Target) -> None:
    """A GPU is replaced by another one, ten times a second: always other UUIDs."""
    end_s = time.monotonic() + target.for_s
    while time.monotonic() < end_s:
        _inject(target, 7, {"kind": "replace"})
        time.sleep(0.1)


def second_plugin(target: Target) -> None:
    """Another plugin serves the same kubelet, as during an upgrade, and ends again."""
    with subprocess.Popen(
        [sys.executable, "-m", "gpuplugin", "run", "--backend", "sim", "--kubelet-dir",
         target.kubelet_dir, "--listen-address", "127.0.0.1:0", "--config-file",
         target.config_file],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as other:  # fmt: skip
        time.sleep(max(target.for_s, SECOND_S))
        other.send_signal(signal.SIGTERM)


ATTACKS: Mapping[str, Callable[[Target], None]] = {
    "nothing": nothing,
    "HTTP: large headers": large_headers,
    "HTTP: slow requests": slow_requests,
    "HTTP: unread pages": unread_pages,
    "HTTP: odd requests": odd_requests,
    "HTTP: scrapes": scrapes,
    "RPC: unfinished requests": unfinished_requests,
    "RPC: garbage": garbage,
    "RPC: empty containers": empty_containers,
    "RPC: large requests": large_requests,
    "RPC: many streams": many_streams,
    "RPC: many connections": many_connections,
    "control: nested questions": nested_questions,
    "file: empty": empty_file,
    "file: FIFO": fifo_file,
    "file: 1,000 digits": digits_file,
    "file: sparse, 1 GiB": sparse_file,
    "file: 90,000 keys": keys_file,
    "file: nested": deep_file,
    "driver: storm of Xids": fault_storm,
    "driver: hangs": hanging_driver,
    "driver: lies": lying_driver,
    "driver: endless count": endless_count,
    "driver: replaced GPUs": replaced_gpus,
    SECOND_PLUGIN: second_plugin,
}


def unfinished_bytes() -> bytes:
    """A connection's preface, and sixteen requests that lack the last bytes of 4 MB."""
    parts = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", frame(4, 0, 0, b"")]
    path = b"/v1beta1.DevicePlugin/Allocate"
    block = b"\x83\x86\x04" + bytes([len(path)]) + path
    block += b"\x00\x0ccontent-type\x10application/grpc\x00\x02te\x08trailers"
    for stream in range(1, 33, 2):
        parts.append(frame(1, 4, stream, block))
        parts.append(frame(0, 0, stream, b"\x00" + struct.pack(">I", 4_000_000) + bytes(16_000)))
        parts += [frame(0, 0, stream, bytes(16_000))] * 248
    return b"".join(parts)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


@contextmanager
def _many_http(target: Target, count: int) -> Iterator[Iterator[socket.socket]]:
    """Connections, made one after the other, that stay for as long as the attack is to last."""
    end_s = time.monotonic() + target.for_s
    with ExitStack() as stack:

        def connect() -> Iterator[socket.socket]:
            for _ in range(count):
                if time.monotonic() >= end_s:
                    return
                with suppress(OSError):
                    peer = socket.create_connection(("127.0.0.1", target.port), timeout=0.2)
                    yield stack.enter_context(peer)

        yield connect()
        time.sleep(max(0.0, end_s - time.monotonic()))


def _inject(target: Target, gpu: int | None, fault: Mapping[str, object]) -> None:
    inject(control_socket(target.kubelet_dir), None if gpu is None else str(gpu), fault)


def _http_peer(target: Target) -> socket.socket:
    return socket.create_connection(("127.0.0.1", target.port), timeout=TIMEOUT_S)


def _device_peer(target: Target) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.settimeout(1)
    peer.connect(str(target.device_socket))
    return peer


def _on_device_socket(target: Target, count: int, data: bytes) -> None:
    """Send `data` on many connections, over and over."""
    end_s = time.monotonic() + target.for_s
    while time.monotonic() < end_s:
        with ExitStack() as stack:
            for _ in range(count):
                with suppress(OSError):
                    stack.enter_context(_device_peer(target)).sendall(data)


def _call(target: Target, contents: tuple[bytes, ...]) -> None:
    end_s = time.monotonic() + target.for_s
    while time.monotonic() < end_s:
        for content in contents:
            with suppress(CallFailed), Connection(target.device_socket, TIMEOUT_S) as connection:
                connection.call(ALLOCATE, content)
