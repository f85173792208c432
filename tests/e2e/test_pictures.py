"""The pictures of the documents can be made anew from the running program."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.browser import BROWSERS

DOCS = Path(__file__).parents[2] / "docs"
PICTURES = ("status-page.png", "dashboard.png")


def size(picture: Path) -> tuple[int, int]:
    """Width and height of a PNG."""
    head = picture.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", head[16:])
    return width, height


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed")
@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="no browser is installed")
def test_the_pictures_are_made_from_the_program(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    command = [sys.executable, "-m", "tools.pictures", "--minutes", "0.3", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stderr
    for name in PICTURES:
        assert size(tmp_path / name) == size(DOCS / name), name
        assert (tmp_path / name).stat().st_size > 100_000, "an empty page"
