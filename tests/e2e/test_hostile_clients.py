"""What a peer on the device socket could do, on both engines: its memory is bounded."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from benchmarks.attacks import ALLOCATE, unfinished_bytes
from gpuplugin.rpc import RpcCode
from gpuplugin.rpc.client import CallFailed, Connection
from tests.e2e.served import StartPlugin
from tests.e2e.test_hostile_http import MIB, peak_kib

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.conftest import Node, Plugin

ENGINES = {"fast": 48 * MIB, "grpcio": 96 * MIB}
"""With how much more memory than at rest each may come out of it: grpcio reads ahead."""


@pytest.fixture(params=["fast", pytest.param("grpcio", marks=pytest.mark.slow)])
def attacked(node: Node, request: pytest.FixtureRequest) -> Iterator[tuple[Plugin, Path]]:
    """The plugin and its socket; its memory stays within bounds."""
    with ExitStack() as stack:
        stack.enter_context(node.start_kubelet())
        plugin = stack.enter_context(
            StartPlugin("nvml", node, stack)("--rpc-engine", request.param)
        )
        node.wait_allocatable(80)
        before_kib = peak_kib(plugin)
        (path,) = node.dir.rglob("gpuplugin-nvidia*.sock")
        yield plugin, path
        assert peak_kib(plugin) - before_kib < ENGINES[request.param]
        assert node.create("pod-of-the-kubelet")["phase"] == "Running"


@pytest.mark.slow
def test_a_request_of_millions_of_empty_containers(attacked: tuple[Plugin, Path]) -> None:
    _, path = attacked
    with Connection(path, 20) as connection:
        for content in (b"\x0a\x00" * 2_000_000, b"\x0a\xfc\xff\xff\x01" + b"\x0a\x00" * 2_000_000):
            with pytest.raises(CallFailed) as caught:
                connection.call(ALLOCATE, content)
            assert caught.value.code == RpcCode.RESOURCE_EXHAUSTED


def test_a_request_of_more_than_four_mebibytes(attacked: tuple[Plugin, Path]) -> None:
    _, path = attacked
    with Connection(path, 20) as connection, pytest.raises(CallFailed) as caught:
        connection.call(ALLOCATE, bytes(4 * 1024 * 1024 + 1))
    assert caught.value.code == RpcCode.RESOURCE_EXHAUSTED


@pytest.mark.slow
def test_requests_that_are_never_finished(attacked: tuple[Plugin, Path]) -> None:
    _, path = attacked
    with ExitStack() as stack:
        for _ in range(15):
            peer = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            peer.connect(str(path))
            peer.settimeout(1)
            with suppress(OSError):
                peer.sendall(unfinished_bytes())
