"""The two wheels: what is in them, and what each does in an environment of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gpuplugin.cli.manifests import PARTS
from gpuplugin.version import VERSION

if TYPE_CHECKING:
    from email.message import Message

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = {
    "gpuplugin": (ROOT, ("gpuplugin", "hal")),
    "gpuplugin-sim": (ROOT / "distributions/sim", ("benchmarks", "sim")),
}
"""Where each is built, and its packages."""
DEPLOY = "gpuplugin/deploy/"
"""Where the first one has what deploys it."""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wheels built from the tree, as the Containerfile builds them."""
    folder = tmp_path_factory.mktemp("dist")
    for place, _packages in DISTRIBUTIONS.values():
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
            cwd=place,
            check=True,
            capture_output=True,
        )
    return {
        name: folder / f"{name.replace('-', '_')}-{VERSION}-py3-none-any.whl"
        for name in DISTRIBUTIONS
    }


@pytest.fixture(scope="module")
def names(wheels: dict[str, Path]) -> dict[str, set[str]]:
    """Files of each wheel."""
    found = {}
    for name, wheel in wheels.items():
        with zipfile.ZipFile(wheel) as archive:
            found[name] = set(archive.namelist())
    return found


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_it_has_every_file_of_its_packages_and_no_other(
    name: str, names: dict[str, set[str]]
) -> None:
    tree = {
        str(path.relative_to(ROOT))
        for package in DISTRIBUTIONS[name][1]
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {one for one in names[name] if ".dist-info/" not in one}
    assert {one for one in packed if not one.startswith(DEPLOY)} == tree
    shipped = {
        f"{DEPLOY}{path.relative_to(ROOT / 'deploy')}"
        for part in PARTS
        for path in (ROOT / "deploy" / part).rglob("*")
        if path.suffix in {".yaml", ".json"}
    }
    assert packed - tree == (shipped if name == "gpuplugin" else set())


@pytest.mark.parametrize(
    ("name", "files"),
    [
        (
            "gpuplugin",
            (
                "gpuplugin/config/default.yaml",
                "gpuplugin/daemon/http/page.css",
                "gpuplugin/kubelet/proto/deviceplugin.proto",
                "gpuplugin/kubelet/proto/podresources.proto",
                "gpuplugin/py.typed",
                "hal/py.typed",
            ),
        ),
        (
            "gpuplugin-sim",
            (
                "benchmarks/py.typed",
                "sim/study/html/page.css",
                "sim/study/html/page.js",
                "sim/nvml/library/call.c",
                "sim/nvml/library/client.h",
                "sim/profiles/h100-sxm5-80gb.yaml",
                "sim/py.typed",
                "sim/scenarios/default.yaml",
                "sim/scenarios/homelab.yaml",
            ),
        ),
    ],
)
def test_it_has_what_is_read_at_run_time(
    name: str, files: tuple[str, ...], names: dict[str, set[str]]
) -> None:
    assert set(files) <= names[name]


def test_each_has_the_licence_and_its_entry_points(names: dict[str, set[str]]) -> None:
    for found in names.values():
        (folder,) = {one.partition("/")[0] for one in found if ".dist-info/" in one}
        assert f"{folder}/licenses/LICENSE" in found
        assert f"{folder}/entry_points.txt" in found


def test_production_needs_no_simpy_and_the_second_needs_the_same_version(
    wheels: dict[str, Path],
) -> None:
    first, second = metadata(wheels["gpuplugin"]), metadata(wheels["gpuplugin-sim"])
    assert first["Version"] == second["Version"] == VERSION
    needed = {re.split(r"[<>=;\[ ]", one)[0].lower() for one in first.get_all("Requires-Dist", [])}
    assert not {"simpy", "gpuplugin-sim", "plotly"} & needed
    assert f"gpuplugin=={VERSION}" in second.get_all("Requires-Dist", [])
    assert [one for one in second.get_all("Requires-Dist", []) if one.startswith("simpy")]


# --- installed ---------------------------------------------------------------------------------


class Environment:
    """A fresh environment with wheels in it, and nothing of this repository on its path."""

    def __init__(self, folder: Path, *wheels: str) -> None:
        venv.create(folder, with_pip=False)
        self.folder = folder
        self._run(
            [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install",
             "--quiet", "-c", str(ROOT / "constraints.txt"), *wheels]
        )  # fmt: skip

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One of its programs, in its own folder."""
        return self._run([str(self.folder / "bin" / words[0]), *words[1:]], check=False)

    def installed(self) -> set[str]:
        script = "import json, importlib.metadata as m; print(json.dumps("
        script += "[one.metadata['Name'] for one in m.distributions()]))"
        return set(json.loads(self.run("python", "-c", script).stdout))

    def _run(self, words: list[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "HOME": str(Path.home())},
            capture_output=True,
            text=True,
            check=check,
            timeout=240,
        )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_first_alone_serves_and_names_the_second(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    own = Environment(tmp_path / "one", f"{wheels['gpuplugin']}[kubernetes]")
    assert "gpuplugin" in own.installed()
    assert not {"gpuplugin-sim", "simpy", "rich", "plotly"} & own.installed()
    assert own.run("gpuplugin", "--version").stdout == f"gpuplugin {VERSION}\n"
    (tmp_path / "config.yaml").write_text("version: v1\n")
    assert own.run("gpuplugin", "config", "check", str(tmp_path / "config.yaml")).returncode == 0
    waits = own.run("gpuplugin", "run", "--fail-on-init-error", "--kubelet-dir", str(tmp_path))
    assert waits.returncode == 1
    assert "libnvidia-ml.so.1" in waits.stderr
    assert "simulated" in own.run("gpuplugin", "manifests").stdout
    for words in (["sim", "scenario", "list"], ["demo"], ["devices", "--backend", "sim"]):
        refused = own.run("gpuplugin", *words)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert f"pip install gpuplugin-sim=={VERSION}" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_both_together_simulate(wheels: dict[str, Path], tmp_path: Path) -> None:
    own = Environment(tmp_path / "both", *map(str, wheels.values()))
    assert {"gpuplugin", "gpuplugin-sim", "simpy"} <= own.installed()
    assert "homelab" in own.run("gpuplugin", "sim", "scenario", "list").stdout
    listed = own.run("gpuplugin", "devices", "--backend", "sim", "--scenario", "homelab", "--json")
    assert listed.returncode == 0, listed.stderr
    assert json.loads(listed.stdout)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stranger_tests_with_the_fixtures(wheels: dict[str, Path], tmp_path: Path) -> None:
    own = Environment(tmp_path / "tests", *map(str, wheels.values()), "pytest")
    (own.folder / "test_mine.py").write_text(
        "def test_pods_share(gpu_node):\n"
        "    pods = [gpu_node.run_pod(f'pod-{number}') for number in range(3)]\n"
        "    assert {pod.phase for pod in pods} == {'Running'}\n"
    )
    outcome = own.run("pytest", "-q", "test_mine.py")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "1 passed" in outcome.stdout


@pytest.mark.slow
def test_the_source_distribution_has_the_first_alone_and_builds(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path), "-t"]
    subprocess.run([*build, "sdist"], cwd=ROOT, check=True, capture_output=True)
    (packed,) = tmp_path.iterdir()
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / packed.name.removesuffix(".tar.gz")
    kept = {"gpuplugin", "hal", "deploy"}
    kept |= {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert {one.name for one in folder.iterdir()} == kept | {"PKG-INFO", ".gitignore"}
    subprocess.run([*build, "wheel"], cwd=folder, check=True, capture_output=True)
    assert (tmp_path / f"gpuplugin-{VERSION}-py3-none-any.whl").is_file()
