"""What any pod could do to the HTTP port, and what it takes of the plugin: bounded memory and time.

The plugin is a process of its own, so its memory and its descriptors are its own, too.
"""

from __future__ import annotations

import re
import resource
import signal
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gpuplugin.daemon.http.server import EXCHANGE_TIMEOUT_S
from tests.e2e.served import StartPlugin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Node, Plugin

MIB = 1024
"""In KiB, as /proc counts."""


@pytest.fixture
def plugin(node: Node) -> Iterator[Plugin]:
    """A plugin that sees its GPUs through NVML, as in the DaemonSet."""
    with ExitStack() as stack:
        stack.enter_context(node.start_kubelet())
        plugin = stack.enter_context(StartPlugin("nvml", node, stack)())
        node.wait_allocatable(80)
        yield plugin


def memory_limit_kib() -> int:
    """The limit of the DaemonSet."""
    manifest = Path("deploy/kustomize/base/daemonset.yaml").read_text()
    return max(map(int, re.findall(r"limits: \{memory: (\d+)Mi\}", manifest))) * MIB


def peak_kib(plugin: Plugin) -> int:
    """The most memory that the process ever had resident."""
    status = Path(f"/proc/{plugin.pid}/status").read_text()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(peak)


def test_large_headers_on_many_connections_take_little_memory(plugin: Plugin) -> None:
    before_kib = peak_kib(plugin)
    with ExitStack() as stack:
        for _ in range(60):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", plugin.port)))
            client.settimeout(0.2)
            with suppress(OSError):
                client.sendall(b"GET /metrics HTTP/1.1\r\n")
                for number in range(99):
                    client.sendall(b"X-%d: " % number + b"x" * 65_000 + b"\r\n")
        assert plugin.get("/health")[0] == 200
    assert peak_kib(plugin) - before_kib < 8 * MIB, "connections hold what was sent"
    assert peak_kib(plugin) < memory_limit_kib()


@pytest.mark.slow
def test_many_slow_connections_take_neither_descriptors_nor_health(
    node: Node, plugin: Plugin
) -> None:
    resource.prlimit(plugin.pid, resource.RLIMIT_NOFILE, (128, 128))
    with ExitStack() as stack:
        for number in range(300):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", plugin.port)))
            client.setblocking(False)
            with suppress(OSError):
                client.send(b"GET /health HTTP/1.1\r\nX-Slow: ")
            if number % 50 == 49:
                asked_s = time.monotonic()
                assert plugin.get("/health")[0] == 200
                assert time.monotonic() - asked_s < EXCHANGE_TIMEOUT_S / 2, "it waits for no other"
        assert len(list(Path(f"/proc/{plugin.pid}/fd").iterdir())) < 100
        assert node.create("pod-of-the-kubelet")["phase"] == "Running"
        plugin.signal(signal.SIGHUP)
        plugin.says("event=config-reloaded")
