"""The wheel has what the tree has: code, and every file that the code reads at run time."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("benchmarks", "gpuplugin", "hal", "sim")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Files of a wheel built from the tree, as the Containerfile builds it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_it_has_every_file_of_the_packages_and_no_other(names: set[str]) -> None:
    tree = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == tree


@pytest.mark.parametrize(
    "name",
    [
        "benchmarks/py.typed",
        "gpuplugin/config/default.yaml",
        "gpuplugin/daemon/http/page.css",
        "gpuplugin/kubelet/proto/deviceplugin.proto",
        "gpuplugin/kubelet/proto/podresources.proto",
        "gpuplugin/py.typed",
        "hal/py.typed",
        "sim/study/html/page.css",
        "sim/study/html/page.js",
        "sim/nvml/library/call.c",
        "sim/nvml/library/client.h",
        "sim/profiles/h100-sxm5-80gb.yaml",
        "sim/py.typed",
        "sim/scenarios/default.yaml",
        "sim/scenarios/homelab.yaml",
    ],
)
def test_it_has_what_is_read_at_run_time(names: set[str], name: str) -> None:
    assert name in names


def test_it_has_the_licence_and_the_command(names: set[str]) -> None:
    (folder,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    assert {f"{folder}/licenses/LICENSE", f"{folder}/entry_points.txt"} <= names
