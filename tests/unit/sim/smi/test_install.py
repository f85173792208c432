"""Where the program is put."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from sim.smi.install import install

if TYPE_CHECKING:
    from pathlib import Path


def test_it_is_put_into_the_folder_once(tmp_path: Path) -> None:
    programs = install(tmp_path)
    program = programs / "nvidia-smi"
    assert programs.parent == tmp_path
    assert os.access(program, os.X_OK)
    before = program.stat().st_ino
    assert install(tmp_path) == programs
    assert program.stat().st_ino == before
    help_text = subprocess.run([program, "-h"], capture_output=True, text=True, check=True).stdout
    assert "--query-gpu" in help_text


def test_a_folder_that_cannot_be_written_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "bin").write_text("")
    programs = install(tmp_path)
    assert tmp_path not in programs.parents
    assert (programs / "nvidia-smi").is_file()
