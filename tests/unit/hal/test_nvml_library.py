"""Finding the driver's library under a driver root."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hal.errors import DriverNotFound
from hal.nvml.library import LIBRARY, LIBRARY_DIRS, LibraryFile, load_library

REPOSITORY = Path(__file__).parents[3]

STAND_IN = """
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 0; return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    text[0] = '4'; text[1] = '2'; text[2] = 0;
    return 0;
}
"""


class Loader:
    """A dynamic loader that takes files with the text "elf" and knows no other libraries."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def __call__(self, name: str) -> None:
        path = Path(name)
        if not path.is_absolute() or not path.exists():
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        if path.read_text() != "elf":
            raise OSError(f"{name}: wrong ELF class: ELFCLASS32")
        self.loaded.append(name)


def place(root: Path, folder: str, text: str = "elf") -> Path:
    path = root / folder / LIBRARY
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("folder", LIBRARY_DIRS)
def test_the_library_is_loaded_from_each_folder_under_the_root(tmp_path: Path, folder: str) -> None:
    path = place(tmp_path, folder)
    loader = Loader()
    assert load_library(tmp_path, loader) == path
    assert loader.loaded == [str(path)]


def test_where_no_file_is_found_the_loader_searches_by_itself(tmp_path: Path) -> None:
    names: list[str] = []

    def loader(name: str) -> None:
        names.append(name)
        if name != LIBRARY:
            raise OSError("no such file")

    assert load_library(tmp_path, loader) is None
    assert names[-1] == LIBRARY


def test_an_unloadable_file_does_not_hide_a_good_one(tmp_path: Path) -> None:
    place(tmp_path, "usr/lib64", "32 bit")
    good = place(tmp_path, "lib64")
    assert load_library(tmp_path, Loader()) == good


def test_not_found_names_every_path_and_every_remedy(tmp_path: Path) -> None:
    with pytest.raises(DriverNotFound) as caught:
        load_library(tmp_path, Loader())
    text = str(caught.value)
    for folder in LIBRARY_DIRS:
        assert str(tmp_path / folder / LIBRARY) in text
    for remedy in (
        "--driver-root ",
        "NVIDIA_DRIVER_ROOT",
        "--driver-root-ctr-path",
        "DRIVER_ROOT_CTR_PATH",
        "RuntimeClass 'nvidia'",
        "runtimeClassName",
    ):
        assert remedy in text


def test_an_unloadable_file_is_named_with_the_loaders_words(tmp_path: Path) -> None:
    path = place(tmp_path, "usr/lib64", "32 bit")
    with pytest.raises(DriverNotFound) as caught:
        load_library(tmp_path, Loader())
    (entry,) = (place for place in caught.value.searched if str(path) in place)
    assert "exists but cannot be loaded" in entry
    assert "wrong ELF class" in entry


def test_a_dangling_link_is_told_from_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "usr/lib64" / LIBRARY
    path.parent.mkdir(parents=True)
    path.symlink_to("libnvidia-ml.so.580.105.08")
    with pytest.raises(DriverNotFound, match=r"a link to libnvidia-ml\.so\.580\.105\.08"):
        load_library(tmp_path, Loader())


def test_the_real_loader_refuses_what_is_no_library(tmp_path: Path) -> None:
    place(tmp_path, "usr/lib64", "not an ELF file")
    code = (
        "import sys, pathlib; from hal.nvml.library import load_library, _dlopen\n"
        "def only_files(name):\n"
        "    if not name.startswith('/'): raise OSError('hidden')\n"
        "    _dlopen(name)\n"
        "load_library(pathlib.Path(sys.argv[1]), only_files)\n"
    )
    done = run_python(code, tmp_path)
    assert done.returncode != 0
    assert "exists but cannot be loaded" in done.stderr


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_binding_uses_the_library_that_was_found(tmp_path: Path) -> None:
    source = tmp_path / "nvml.c"
    source.write_text(STAND_IN)
    library = place(tmp_path, "opt/nvidia/lib64", "")
    command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}", "-o", str(library), str(source)]
    subprocess.run(command, check=True, timeout=30)
    # Not the backend alone: the folder is on no search path, so only the preloaded library can
    # answer the binding, which asks for the plain soname.
    code = (
        "import sys, pathlib; from hal.nvml import NvmlBackend\n"
        "backend = NvmlBackend(pathlib.Path(sys.argv[1]))\n"
        "backend.open(); print(backend.driver_version, backend.gpus()); backend.close()\n"
    )
    done = run_python(code, tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("42 ()", "")


def run_python(code: str, argument: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, str(argument)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_library_is_replaced_once_another_file_has_its_name(tmp_path: Path) -> None:
    path = place(tmp_path, "lib64", "old")
    loaded = LibraryFile.at(path)
    assert not loaded.was_replaced()
    path.write_text("longer than it was, but the same file")
    assert not loaded.was_replaced()
    path.rename(path.with_suffix(".old"))  # which keeps its inode in use, as a process does
    assert loaded.was_replaced()
    place(tmp_path, "lib64", "new")
    assert loaded.was_replaced()


def test_a_mounted_file_is_replaced_once_it_has_no_name_on_the_host(tmp_path: Path) -> None:
    path = place(tmp_path, "lib64")
    with path.open() as stream:
        # Like a mount of the file, this path leads to it whatever becomes of its name.
        loaded = LibraryFile.at(Path(f"/proc/self/fd/{stream.fileno()}"))
        assert not loaded.was_replaced()
        path.unlink()
        assert loaded.was_replaced()


def test_a_library_that_is_not_loaded_has_no_file() -> None:
    script = "from hal.nvml.library import LibraryFile; print(LibraryFile.loaded())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert done.stdout == "None\n"
