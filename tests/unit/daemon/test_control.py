"""How the control server begins and ends; what it answers is tested on a whole plugin."""

from __future__ import annotations

import asyncio
import gc
import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

import pytest

from gpuplugin.daemon.control import SOCKET_NAME, ControlServer
from gpuplugin.daemon.files import FileWatch
from gpuplugin.daemon.serving.sockets import listened_on
from gpuplugin.daemon.status import StatusBoard
from tests.component.waiting import DEADLINE_S, becomes_true

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gpuplugin.daemon.http.pageview import PageView
    from gpuplugin.daemon.node import Node

NO_NODE = cast("Node", None)
"""Nobody asks anything here."""


async def nothing_held() -> None:
    raise AssertionError("nobody asks what pods hold")


def no_page() -> PageView:
    raise AssertionError("nobody asks for the page")


def test_who_is_connected_does_not_hold_up_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with Python 3.12 and later, whose servers wait for connections when they are left."""

    async def wait_closed(_server: asyncio.Server) -> None:
        await asyncio.Event().wait()

    async def main(folder: Path) -> None:
        files = FileWatch()
        control = ControlServer(folder, NO_NODE, StatusBoard(), files, no_page, nothing_held)
        task = asyncio.create_task(control.run())
        await becomes_true((folder / SOCKET_NAME).exists)
        reader, writer = await asyncio.open_unix_connection(folder / SOCKET_NAME)
        task.cancel()
        assert (await asyncio.wait({task}, timeout=DEADLINE_S))[0] == {task}
        assert not (folder / SOCKET_NAME).exists()
        writer.close()
        assert await reader.read() == b""
        files.close()

    monkeypatch.setattr(asyncio.Server, "wait_closed", wait_closed)
    with TemporaryDirectory(prefix="gp") as name:
        asyncio.run(main(Path(name)))


async def turns_of_the_loop(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def cancelled_after(folder: Path, begun: Callable[[], Awaitable[None]]) -> None:
    """A control server that runs until `begun` is over, and the end of its loop.

    What is open then would be reported as a test's warning, and warnings are errors.
    """

    async def main() -> None:
        files = FileWatch()
        control = ControlServer(folder, NO_NODE, StatusBoard(), files, no_page, nothing_held)
        task = asyncio.create_task(control.run())
        await begun()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        files.close()

    asyncio.run(main())
    gc.collect()
    assert not (folder / SOCKET_NAME).exists()


@pytest.mark.parametrize("turns", range(8))
def test_a_client_that_comes_at_its_end_leaves_no_socket_open(turns: int) -> None:
    with TemporaryDirectory(prefix="gp") as name:
        path = Path(name) / SOCKET_NAME

        async def client_came() -> None:
            await becomes_true(lambda: listened_on(path))
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                await turns_of_the_loop(turns)

        cancelled_after(Path(name), client_came)


@pytest.mark.parametrize("turns", range(8))
def test_cancelled_at_any_moment_it_leaves_no_socket(turns: int) -> None:
    with TemporaryDirectory(prefix="gp") as name:
        cancelled_after(Path(name), lambda: turns_of_the_loop(turns))
