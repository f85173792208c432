"""Changes of folders as they are told of, and what is done where they are not."""

from __future__ import annotations

import asyncio
from gc import collect
from typing import TYPE_CHECKING
from weakref import ref

import pytest

from gpuplugin.daemon.files import BLIND_LOOK_S, LOOK_S, FileWatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

DEADLINE_S = 10.0


class Follower:
    """What one task was told of a folder."""

    def __init__(self, files: FileWatch, folder: Path) -> None:
        self.turn = asyncio.Event()
        self.names: list[str] = []
        self.look_s = files.follow([folder], self.turn, self.names.append)

    async def told_of(self, name: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while name not in self.names:
                await self.turn.wait()
                self.turn.clear()


def run(body: Callable[[FileWatch], Awaitable[None]]) -> None:
    async def main() -> None:
        files = FileWatch()
        try:
            await body(files)
        finally:
            files.close()

    asyncio.run(main())


def test_a_file_that_comes_and_goes_at_once_is_told_of(tmp_path: Path) -> None:
    async def body(files: FileWatch) -> None:
        one, other = Follower(files, tmp_path), Follower(files, tmp_path)
        assert one.look_s == LOOK_S
        (tmp_path / "socket").touch()
        (tmp_path / "socket").unlink()
        await one.told_of("socket")
        await other.told_of("socket")

    run(body)


def test_who_has_gone_is_not_kept(tmp_path: Path) -> None:
    """Resources come and go with configurations, each with its followers."""

    async def body(files: FileWatch) -> None:
        gone = ref(Follower(files, tmp_path).turn)
        collect()
        assert gone() is None
        (tmp_path / "socket").touch()
        await Follower(files, tmp_path).told_of("socket")

    run(body)


@pytest.mark.parametrize("change", ["written", "replaced", "mode"])
def test_a_change_of_a_file_is_told_of(tmp_path: Path, change: str) -> None:
    file = tmp_path / "config"
    file.write_text("a")

    async def body(files: FileWatch) -> None:
        follower = Follower(files, tmp_path)
        match change:
            case "written":
                file.write_text("b")
            case "replaced":
                fresh = tmp_path / "fresh"
                fresh.write_text("b")
                fresh.replace(file)
            case _:
                file.chmod(0o600)
        await follower.told_of("config")

    run(body)


def test_a_folder_that_is_made_again_is_followed_again(tmp_path: Path) -> None:
    folder = tmp_path / "sockets"
    folder.mkdir()

    async def body(files: FileWatch) -> None:
        follower = Follower(files, folder)
        folder.rmdir()
        await follower.told_of("")
        folder.mkdir()
        files.follow([folder], follower.turn, follower.names.append)
        (folder / "socket").touch()
        await follower.told_of("socket")

    run(body)


def test_a_folder_that_is_missing_is_looked_for_seldom(tmp_path: Path) -> None:
    async def body(files: FileWatch) -> None:
        assert Follower(files, tmp_path / "none").look_s == LOOK_S

    run(body)


def test_where_nothing_is_told_of_it_is_looked_for_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuplugin.daemon.files._init", lambda _libc: -1)

    async def body(files: FileWatch) -> None:
        assert Follower(files, tmp_path).look_s == BLIND_LOOK_S

    run(body)
