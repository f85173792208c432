"""Finding the driver's files below a root, in the layouts of several distributions."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hal.driverfiles import DriverFiles, find_driver_files

if TYPE_CHECKING:
    from collections.abc import Iterator

MULTIARCH = "usr/lib/x86_64-linux-gnu"
FOLDERS = (
    MULTIARCH,
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "lib64",
    "lib/x86_64-linux-gnu",
    "lib/aarch64-linux-gnu",
    "opt/nvidia/lib64",
    "usr/local/nvidia/lib64",
    "usr/local/glibc/usr/lib",
    "usr/local/lib",
    "usr/lib",
    "lib",
)
VERSION = "580.105.08"


class Tree:
    """A driver's root that a test furnishes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def file(self, path: str) -> str:
        full = self.root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_text("")
        return path

    def link(self, path: str, target: str) -> str:
        full = self.root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.symlink_to(target)
        return path

    def found(self) -> DriverFiles:
        return find_driver_files(self.root)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def short_tree() -> Iterator[Tree]:
    """A root with a short path, for sockets."""
    folder = tempfile.mkdtemp(prefix="gp")
    yield Tree(Path(folder))
    shutil.rmtree(folder)


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_layout(tree: Tree, folder: str) -> None:
    library = tree.file(f"{folder}/libcuda.so.{VERSION}")
    found = tree.found()

    assert found == DriverFiles(VERSION, ((library, ()),))
    assert found.library_folders == (folder,)


@pytest.mark.parametrize("version", ["580.105.08", "535.54", "470.256.02"])
def test_versions(tree: Tree, version: str) -> None:
    tree.file(f"{MULTIARCH}/libcuda.so.{version}")

    assert tree.found().version == version


@pytest.mark.parametrize("absolute", ["", f"/{MULTIARCH}/"])
def test_of_several_versions_the_one_in_use_counts(tree: Tree, absolute: str) -> None:
    tree.file(f"{MULTIARCH}/libcuda.so.535.104.05")
    cuda = tree.file(f"{MULTIARCH}/libcuda.so.{VERSION}")
    one = tree.link(f"{MULTIARCH}/libcuda.so.1", f"{absolute}libcuda.so.{VERSION}")

    assert tree.found() == DriverFiles(VERSION, ((cuda, (one,)),))


@pytest.mark.parametrize(
    "name", ["libcuda.so.1", "libcuda.so", "libcuda.so.580", "libcuda.so.1.2.3.4", "libcuda.so.x.y"]
)
def test_names_that_tell_no_version(tree: Tree, name: str) -> None:
    tree.file(f"{MULTIARCH}/{name}")

    assert tree.found() == DriverFiles()


def test_without_a_driver_there_is_nothing(tree: Tree) -> None:
    tree.file("usr/bin/nvidia-smi")
    tree.file(f"{MULTIARCH}/libnvidia-ml.so.{VERSION}")

    assert tree.found() == DriverFiles()
    assert tree.found().library_folders == ()


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    assert find_driver_files(tmp_path / "none") == DriverFiles()


def test_libraries_of_the_version_with_all_their_names(tree: Tree) -> None:
    cuda = tree.file(f"{MULTIARCH}/libcuda.so.{VERSION}")
    tree.link(f"{MULTIARCH}/libcuda.so.1", f"libcuda.so.{VERSION}")
    tree.link(f"{MULTIARCH}/libcuda.so", "libcuda.so.1")
    ml = tree.file(f"{MULTIARCH}/libnvidia-ml.so.{VERSION}")
    tree.link(f"{MULTIARCH}/libnvidia-ml.so.1", f"libnvidia-ml.so.{VERSION}")
    alone = tree.file(f"{MULTIARCH}/libnvidia-tls.so.{VERSION}")

    assert tree.found().libraries == (
        (cuda, (f"{MULTIARCH}/libcuda.so", f"{MULTIARCH}/libcuda.so.1")),
        (ml, (f"{MULTIARCH}/libnvidia-ml.so.1",)),
        (alone, ()),
    )


def test_links_with_absolute_targets_count(tree: Tree) -> None:
    """Packages make such links; below a mounted root they lead elsewhere, and their name counts."""
    cuda = tree.file(f"{MULTIARCH}/libcuda.so.{VERSION}")
    one = tree.link(f"{MULTIARCH}/libcuda.so.1", f"/{MULTIARCH}/libcuda.so.{VERSION}")

    assert tree.found().libraries == ((cuda, (one,)),)


def test_other_libraries_are_left_out(tree: Tree) -> None:
    cuda = tree.file(f"{MULTIARCH}/libcuda.so.{VERSION}")
    tree.file(f"{MULTIARCH}/libcuda.so.470.1.1.bak")
    tree.file(f"{MULTIARCH}/libnvidia-ml.so.999.1.1")
    tree.file(f"{MULTIARCH}/libc.so.6")
    tree.file(f"{MULTIARCH}/libcudart.so.12")
    tree.link(f"{MULTIARCH}/libcuda.so.1", "libother.so")
    tree.file(f"{MULTIARCH}/readme.so.{VERSION}")

    assert tree.found().libraries == ((cuda, ()),)


def test_a_library_with_a_longer_name_gives_no_name_to_another(tree: Tree) -> None:
    short = tree.file(f"{MULTIARCH}/libcuda.so.{VERSION}")
    long = tree.file(f"{MULTIARCH}/libcudadebugger.so.{VERSION}")
    one = tree.link(f"{MULTIARCH}/libcudadebugger.so.1", f"libcudadebugger.so.{VERSION}")

    assert tree.found().libraries == ((short, ()), (long, (one,)))


def test_the_first_folder_with_a_driver_counts(tree: Tree) -> None:
    tree.file(f"lib64/libcuda.so.{VERSION}")
    first = tree.file("usr/lib64/libcuda.so.535.1.2")

    assert tree.found() == DriverFiles("535.1.2", ((first, ()),))


def test_programs_of_the_first_folder_that_has_each(tree: Tree) -> None:
    tree.file(f"{MULTIARCH}/libcuda.so.{VERSION}")
    smi = tree.file("usr/bin/nvidia-smi")
    tree.file("usr/local/nvidia/bin/nvidia-smi")
    server = tree.file("usr/local/nvidia/bin/nvidia-cuda-mps-server")
    control = tree.file("opt/bin/nvidia-cuda-mps-control")
    tree.file("usr/bin/nvidia-settings")
    (tree.root / "usr/bin/nvidia-debugdump").mkdir()

    assert tree.found().programs == (smi, control, server)


def test_sockets_that_are_sockets(short_tree: Tree) -> None:
    short_tree.file(f"{MULTIARCH}/libcuda.so.{VERSION}")
    short_tree.file("run/nvidia-fabricmanager/socket")
    path = short_tree.root / "run/nvidia-persistenced/socket"
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(path))
        assert short_tree.found().sockets == ("run/nvidia-persistenced/socket",)
