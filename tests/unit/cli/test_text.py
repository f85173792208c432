"""Files that commands write, and screens that are drawn again."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from gpuplugin.cli.text import output_file, watched

if TYPE_CHECKING:
    from pathlib import Path


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def test_a_file_is_there_when_all_of_it_is(tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.write_text("old")
    with output_file(file) as stream:
        stream.write("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_a_file_that_fails(tmp_path: Path, error: type[BaseException]) -> None:
    def write() -> None:
        with output_file(tmp_path / "out") as stream:
            stream.write("half")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == []


def test_a_folder_that_is_not_there_is_told_with_the_name_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "no/out"
    with pytest.raises(OSError, match="No such file") as caught, output_file(file):
        pass
    assert str(file) in str(caught.value)
    assert ".part" not in str(caught.value)


def test_a_link_stays_and_a_pipe_is_written_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    with output_file(tmp_path / "link") as stream:
        stream.write("x")
    assert (tmp_path / "real").read_text() == "x"
    assert (tmp_path / "link").is_symlink()

    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    with output_file(tmp_path / "pipe") as stream:
        stream.write("y")
    reader.join(10)
    assert read == ["y"]


def test_watching_shows_again_until_ctrl_c_and_keeps_the_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("gpuplugin.cli.text.time.sleep", sleep)
    assert watched(lambda: (len(waits), f"look {len(waits)}"), 2.0) == 2
    assert capsys.readouterr().out.split("\n") == ["look 0", "look 1", "look 2", ""]
    assert waits == [2.0] * 3
    assert watched(lambda: (7, ""), 0) == 7
