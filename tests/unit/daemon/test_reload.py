"""Which changes of a file are taken over, and when: a file that still moves is not read."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from gpuplugin.config.load import load_settings
from gpuplugin.config.plans import sharing_plan
from gpuplugin.daemon import reload as reload_module
from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.daemon.reload import Reloader
from gpuplugin.daemon.status import StatusBoard

if TYPE_CHECKING:
    from pathlib import Path

    from gpuplugin.config.loaded import Loaded


class Watch:
    """A reloader whose polls are turned by hand."""

    def __init__(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, folder: Path | None = None
    ) -> None:
        self.adopted: list[int] = []
        self.before_load: list[int] = []
        """What is written just before the file is loaded, the first one first."""
        self.status = StatusBoard()
        self._file = file

        def load() -> Loaded:
            if self.before_load:
                self.write(self.before_load.pop(0))
            return load_settings({}, {}, str(file))

        async def adopt(loaded: Loaded) -> None:
            plan = sharing_plan(loaded.settings)
            self.adopted.append(plan.resources[0].replicas if plan.resources else 1)

        self._polls: asyncio.Queue[None] = asyncio.Queue()
        self._paused = asyncio.Event()

        async def pause(_reloader: Reloader, *, moves: bool) -> bool:
            self._paused.set()
            await self._polls.get()
            return False

        monkeypatch.setattr(reload_module.Reloader, "_pause", pause)
        self.reloader = Reloader(load(), load, adopt, self.status, Metrics(), folder)

    def write(self, replicas: int | None) -> None:
        text = "" if replicas is None else f"[{{name: gpu, replicas: {replicas}}}]"
        self._file.write_text(text and f"sharing: {{timeSlicing: {{resources: {text}}}}}\n")

    async def poll(self, times: int = 1) -> None:
        for _ in range(times):
            await self._paused.wait()
            self._paused.clear()
            self._polls.put_nowait(None)
        await self._paused.wait()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("sharing: {timeSlicing: {resources: [{name: gpu, replicas: 10}]}}\n")
    return path


def test_a_file_that_is_emptied_before_it_is_written_is_never_read_empty(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> list[int]:
        watch = Watch(file, monkeypatch)
        task = asyncio.create_task(watch.reloader.run())
        await watch.poll()
        watch.write(None)
        await watch.poll()
        watch.write(4)
        await watch.poll(3)
        task.cancel()
        return watch.adopted

    assert asyncio.run(main()) == [4]


def test_an_unchanged_file_is_read_for_nobody(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> list[int]:
        watch = Watch(file, monkeypatch)
        task = asyncio.create_task(watch.reloader.run())
        await watch.poll(3)
        await asyncio.to_thread(file.touch)
        await watch.poll(3)
        task.cancel()
        return watch.adopted

    assert asyncio.run(main()) == []


def test_what_changed_between_reading_and_watching_is_taken_over(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> list[int]:
        watch = Watch(file, monkeypatch)
        watch.write(3)
        task = asyncio.create_task(watch.reloader.run())
        await watch.poll(3)
        task.cancel()
        return watch.adopted

    assert asyncio.run(main()) == [3]


def test_a_file_beside_it_may_have_any_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file.parent / os.fsdecode(b"\xff")).touch()

    async def main() -> list[int]:
        watch = Watch(file, monkeypatch, file.parent)
        task = asyncio.create_task(watch.reloader.run())
        await watch.poll()
        watch.write(4)
        await watch.poll(3)
        task.cancel()
        return watch.adopted

    async def within_time() -> list[int]:
        async with asyncio.timeout(10.0):
            return await main()

    assert asyncio.run(within_time()) == [4]


def test_an_unforeseen_failure_is_a_refusal_that_shows(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> str:
        watch = Watch(file, monkeypatch)
        task = asyncio.create_task(watch.reloader.run())
        await watch.poll()

        def broken(*_: object) -> Loaded:
            raise ZeroDivisionError("no idea")

        monkeypatch.setattr(watch.reloader, "_load", broken)
        watch.write(4)
        await watch.poll(3)
        task.cancel()
        return watch.status.readiness().components["config"].text

    text = asyncio.run(main())
    assert "the last good one stays in force: ZeroDivisionError: no idea" in text


@pytest.mark.parametrize("at_start", [True, False])
def test_a_file_that_changes_while_it_is_read_and_back_is_read_again(
    file: Path, monkeypatch: pytest.MonkeyPatch, at_start: bool
) -> None:
    """It is as it was when it was looked at, but what is in force is what came between."""

    async def main() -> list[int]:
        watch = Watch(file, monkeypatch)
        task = asyncio.create_task(watch.reloader.run())
        if not at_start:
            await watch.poll()
            watch.write(4)
            await watch.poll()
        watch.before_load.append(7)
        await watch.poll()
        watch.write(10 if at_start else 4)
        await watch.poll(4)
        task.cancel()
        return watch.adopted

    assert asyncio.run(main()) == ([7, 10] if at_start else [7, 4])
