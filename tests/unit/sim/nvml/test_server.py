"""The server against clients that are not the library, and its tidiness."""

from __future__ import annotations

import os
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pynvml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.nvml.dispatch import FUNCTIONS
from sim.nvml.library import abi_hash
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from tests.unit.sim.nvml.conftest import World

DEADLINE_S = 20.0
HELLO = struct.pack("=IHHQQ", 20, 0xFFFF, 0, abi_hash(), 0)


def connect(world: World, greeting: bytes = HELLO) -> socket.socket:
    """A connection that has introduced itself."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(DEADLINE_S)
    client.connect(str(world.socket))
    client.sendall(greeting)
    return client


def is_ended(client: socket.socket) -> bool:
    """Whether the other side closes the connection."""
    try:
        while client.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


def test_a_library_of_another_version_is_told_so(world: World) -> None:
    with connect(world, struct.pack("=IHHQQ", 20, 0xFFFF, 0, abi_hash() ^ 1, 0)) as client:
        response = client.recv(4096)
    assert struct.unpack_from("=Ii", response)[1] == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_garbage_ends_its_own_connection_and_nothing_else(nvml: World, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, 200) | st.integers(0, 0xFFFF))
    body = data.draw(st.binary(max_size=80))
    length = data.draw(st.just(4 + len(body)) | st.integers(0, 0xFFFFFFFF))
    greeting = HELLO if data.draw(st.booleans()) else b""
    with connect(nvml, greeting) as client:
        if greeting:
            assert client.recv(4096)
        client.sendall(struct.pack("=IHH", length, number, 0) + body)
        client.shutdown(socket.SHUT_WR)
        assert is_ended(client)
    assert pynvml.nvmlDeviceGetCount() == 5


def test_a_second_request_before_the_answer_ends_the_connection(world: World) -> None:
    with connect(world, HELLO + HELLO) as client:
        assert is_ended(client)


def test_an_endless_request_is_not_read(world: World) -> None:
    with connect(world, struct.pack("=IHH", 1 << 31, 0, 0)) as client:
        assert is_ended(client)


def test_nobody_has_room_for_more_than_a_message(world: World) -> None:
    """The answer would be filled up to it."""
    number = [one.name for one in FUNCTIONS].index("nvmlSystemGetDriverVersion")
    body = struct.pack("=HHQQ", number, 2, 1 << 40, 80)
    with connect(world) as client:
        assert client.recv(4096)
        client.sendall(struct.pack("=I", len(body)) + body)
        assert client.recv(4096) == b""


def test_connections_of_clients_that_went_are_closed(world: World) -> None:
    descriptors = Path(f"/proc/{os.getpid()}/fd")
    with connect(world) as first:
        assert first.recv(4096)
        before = len(list(descriptors.iterdir()))
        for _ in range(50):
            with connect(world) as client:
                assert client.recv(4096)
        eventually(lambda: len(list(descriptors.iterdir())) <= before)


def test_the_end_of_the_server_leaves_nothing(world: World) -> None:
    threads = threading.active_count()
    with connect(world) as client:
        assert client.recv(4096)
        world.server.close()
        assert is_ended(client)
    assert threading.active_count() == threads - 1
    assert not world.socket.exists()
