"""The driver's files where each release of Talos has them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from hal.driverfiles import find_driver_files
from hal.nvml.library import load_library
from tests.talos import VERSIONS, talos_tree

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("release", VERSIONS)
def test_libraries_and_programs_are_found(tmp_path: Path, release: str) -> None:
    tree = talos_tree(tmp_path, release)
    found = find_driver_files(tmp_path)

    assert found.version == tree.driver
    assert found.library_folders == (tree.libraries,)
    assert "usr/local/bin/nvidia-smi" in found.programs
    files = {path for path, _ in found.libraries}
    assert f"{tree.libraries}/libcuda.so.{tree.driver}" in files
    assert not any("libc.so" in path for path in files)


@pytest.mark.parametrize("release", VERSIONS)
def test_nvml_is_loaded_from_there(tmp_path: Path, release: str) -> None:
    tree = talos_tree(tmp_path, release)

    def open_file(name: str) -> None:
        with open(name):  # noqa: PTH123 - as the loader is given it
            pass

    loaded = partial(load_library, dlopen=open_file)(tmp_path)
    assert loaded == tmp_path / tree.libraries / "libnvidia-ml.so.1"
