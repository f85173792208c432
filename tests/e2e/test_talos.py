"""The program on a node of each Talos release: NVML is loaded from where that release has it.

The trees are made up (`tests.talos`), the library is the simulated one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sim.nvml.library import built_library
from tests.e2e.conftest import DEADLINE_S, RESOURCE, Node, Plugin
from tests.e2e.served import ServedNode
from tests.talos import VERSIONS, Tree, talos_tree

if TYPE_CHECKING:
    from collections.abc import Iterator


LAYOUTS = ("1.10", "1.15")
"""One release for each place of the libraries; the other commands are tried on all releases."""


@pytest.fixture(scope="module")
def hardware() -> Iterator[dict[str, str]]:
    """Variables of a process that sees the simulated hardware, if it finds the library."""
    folder = Path(tempfile.mkdtemp(prefix="gp"))
    with ServedNode(folder, "--scenario", "homelab") as served:
        yield {name: text for name, text in served.env.items() if name != "LD_LIBRARY_PATH"}
    shutil.rmtree(folder)


@dataclass
class Talos:
    tree: Tree
    env: dict[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gpuplugin", *arguments],
            capture_output=True,
            text=True,
            env=self.env,
            timeout=DEADLINE_S,
            check=False,
        )


@pytest.fixture(params=VERSIONS)
def talos(request: pytest.FixtureRequest, tmp_path: Path, hardware: dict[str, str]) -> Talos:
    tree = talos_tree(tmp_path, request.param, built_library())
    return Talos(tree, {**hardware, "DRIVER_ROOT_CTR_PATH": str(tmp_path)})


def test_devices(talos: Talos) -> None:
    done = talos.run("devices", "--json")
    assert done.returncode == 0, done.stderr
    assert RESOURCE in done.stdout


def test_cdi_show(talos: Talos) -> None:
    done = talos.run("cdi", "show", "--device-list-strategy", "cdi-cri")
    assert done.returncode == 0, done.stderr
    (spec,) = json.loads(done.stdout).values()
    files = {one["containerPath"] for one in spec["containerEdits"]["mounts"]}
    assert f"/{talos.tree.libraries}/libcuda.so.{talos.tree.driver}" in files


@pytest.mark.parametrize(
    "talos",
    [pytest.param(one, marks=() if one in LAYOUTS else pytest.mark.slow) for one in VERSIONS],
    indirect=True,
)
def test_the_daemon(talos: Talos, node: Node) -> None:
    with node.start_kubelet(), Plugin(*node.at, env=talos.env):
        node.wait_allocatable(10)


def test_doctor(talos: Talos) -> None:
    done = talos.run("doctor", "--json", "--root", str(talos.tree.root))
    checks = {one["check"]: one for one in json.loads(done.stdout)["checks"]}

    library = f"/{talos.tree.libraries}/libnvidia-ml.so.1"
    assert checks["nvml-library"]["text"].startswith(f"libnvidia-ml.so.1 at {library}")
    assert checks["driver-answers"]["severity"] == "ok"
    version = VERSIONS[talos.tree.release][0]
    assert checks["talos"]["text"].startswith(f"Talos {version}: ")
