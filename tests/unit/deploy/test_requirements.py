"""deploy/requirements: hashes alone, and exactly what the image installs on each machine."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import distribution
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.e2e.containerfile import FILE, ROOT
from tools.requirements import FOLDER, GLIBC, MACHINES, python_version, text_of, wanted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PYTHON = python_version()
FILES = ("build", "plugin", "sim")
PIN = re.compile(r"([a-z0-9-]+)==(\S+)( ; platform_machine == \"\w+\")? \\")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")


def pins(name: str) -> dict[str, str]:
    """Versions in a file by package."""
    found = (PIN.fullmatch(line) for line in (FOLDER / f"{name}.txt").read_text().splitlines())
    return {one[1]: one[2] for one in found if one}


def needed(requirements: list[str], machine: str) -> set[str]:
    """Packages that pip would install, by the metadata of those that are installed here."""
    environment = {
        "python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "extra": "",
        "platform_machine": machine, "sys_platform": "linux", "platform_system": "Linux",
        "implementation_name": "cpython", "platform_python_implementation": "CPython",
        "os_name": "posix",
    }  # fmt: skip
    every: set[str] = set()
    waiting = [(Requirement(one), "") for one in requirements]
    seen = set()
    while waiting:
        one, extra = waiting.pop()
        if one.marker and not one.marker.evaluate(environment | {"extra": extra}):
            continue
        every.add(canonicalize_name(one.name))
        for wanted_extra in ("", *one.extras):
            if (one.name, wanted_extra) not in seen:
                seen.add((one.name, wanted_extra))
                below = distribution(one.name).requires or []
                waiting += [(Requirement(text), wanted_extra) for text in below]
    return every


def _lines(name: str) -> Iterator[str]:
    yield from (FOLDER / f"{name}.txt").read_text().splitlines()[1:]


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_versions_and_hashes_and_no_address(name: str) -> None:
    for line in _lines(name):
        assert PIN.fullmatch(line) or HASH.fullmatch(line), line
    assert not re.search(r"https?:|//|@", (FOLDER / f"{name}.txt").read_text())


@pytest.mark.parametrize("name", FILES)
def test_versions_are_those_of_the_constraints(name: str) -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    constraints = {canonicalize_name(one.split("==")[0]): one.split("==")[1] for one in lines}
    assert pins(name).items() <= constraints.items(), "run: make requirements"


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["plugin", "sim"])
def test_a_file_has_all_that_the_image_installs_and_no_more(name: str, machine: str) -> None:
    assert set(pins(name)) == needed(wanted()[name], machine), "run: make requirements"


def test_production_is_part_of_what_the_simulators_image_has() -> None:
    assert pins("plugin").items() < pins("sim").items()
    assert "simpy" in pins("sim").keys() - pins("plugin").keys()


def test_they_are_for_the_python_of_the_base() -> None:
    assert f"/python:{PYTHON}-slim@" in FILE.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_the_tool_writes_the_same_again(name: str) -> None:
    assert (FOLDER / f"{name}.txt").read_text() == text_of(wanted()[name], PYTHON)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", FILES)
def test_pip_accepts_the_hashes_for_each_machine(name: str, machine: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"]
    command += ["--target", str(tmp_path), "--only-binary", ":all:", "--require-hashes"]
    command += ["--implementation", "cp", "--python-version", PYTHON]
    for glibc in range(17, int(GLIBC.partition("_")[2]) + 1):
        command += ["--platform", f"manylinux_2_{glibc}_{machine}"]
    command += ["--platform", f"manylinux2014_{machine}", "-r", str(FOLDER / f"{name}.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
