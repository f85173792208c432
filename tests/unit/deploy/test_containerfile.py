"""What the Containerfile and its neighbours say; that it works is for tests/e2e/test_sandbox.py."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

from gpuplugin.version import VERSION
from tests.e2e.containerfile import FILE, ROOT, image_environment, stages, steps
from tests.unit.deploy.manifests import plugin_container, pod_spec

if TYPE_CHECKING:
    from pathlib import Path

TEXT = FILE.read_text()
BUILD, FINAL = stages(TEXT)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _rest(word: str) -> list[str]:
    return [step.rest for step in FINAL if step.word == word]


def test_every_stage_is_on_the_base_of_the_argument() -> None:
    assert steps(TEXT)[0].word == "ARG"
    assert steps(TEXT)[0].rest.startswith("PYTHON_IMAGE=")
    assert BUILD[0].rest == "${PYTHON_IMAGE} AS build"
    assert FINAL[0].rest == "${PYTHON_IMAGE}"
    assert not re.search(r"@sha256:[0-9a-f]", TEXT), "a digest here would be out of date"


def test_the_image_runs_as_the_user_of_the_daemonset_without_a_shell() -> None:
    context = plugin_container()["securityContext"]
    assert _rest("USER") == [f"{context['runAsUser']}:{context['runAsGroup']}"]
    after = FINAL[[step.word for step in FINAL].index("USER") :]
    assert not {"RUN", "COPY"} & {step.word for step in after}, "files are root's"
    for word in ("ENTRYPOINT", "CMD", "RUN"):
        (step,) = [step for step in FINAL if step.word == word]
        assert step.is_exec_form, word


def test_it_starts_what_the_daemonset_starts() -> None:
    words = [word for step in FINAL if step.word in {"ENTRYPOINT", "CMD"} for word in step.words]
    assert words == plugin_container()["command"]
    assert image_environment(FINAL, {"PATH": "/bin"})["PATH"] == "/app/bin:/bin"


def test_the_manifest_names_the_version_that_is_built() -> None:
    containers = [*pod_spec()["initContainers"], *pod_spec()["containers"]]
    assert {one["image"] for one in containers} == {f"gpuplugin:{VERSION}"}


@pytest.mark.parametrize("name", ["version", "revision", "source"])
def test_it_says_where_it_comes_from(name: str) -> None:
    (labels,) = _rest("LABEL")
    assert f'org.opencontainers.image.{name}="${{{name.upper()}}}"' in labels
    assert f"{name.upper()}=unknown" in _rest("ARG")


def test_extras_are_those_of_the_package() -> None:
    (extras,) = [step.rest for step in BUILD if step.rest.startswith("EXTRAS=")]
    assert extras.removeprefix("EXTRAS=").split(",") == ["kubernetes"]
    assert {"kubernetes", "cli"} <= PROJECT["optional-dependencies"].keys()


def test_what_is_installed_is_pinned_and_never_compiled() -> None:
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().split()}
    installs = [step.rest for step in BUILD if re.search(r"\binstall\b", step.rest)]
    assert len(installs) == 2
    for install in installs:
        assert "-c constraints.txt --only-binary :all:" in install
    assert {"hatchling", "cyclonedx-bom"} <= pinned


def test_the_context_has_what_is_copied_and_nothing_that_is_made() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in rules if line.startswith("!")}
    copied = {name for step in BUILD if step.word == "COPY" for name in step.rest.split()[:-1]}
    assert allowed == copied
    assert all((ROOT / name).exists() for name in copied)
    assert "*" in rules
    assert any(fnmatch.fnmatch("gpuplugin/__pycache__", rule) for rule in rules[1:])


def test_without_an_engine_make_says_which_are_known(tmp_path: Path) -> None:
    done = _build(tmp_path)
    assert done.returncode == 1
    assert "podman, docker (with its daemon) or buildah is needed" in done.stderr


def test_the_first_engine_that_answers_builds(tmp_path: Path) -> None:
    _engine(tmp_path, "docker", "exit 1")
    _engine(tmp_path, "buildah", '[ "$1" = version ] || printf "%s|" "$@"')
    done = _build(tmp_path, PYTHON_IMAGE="example.com/python@sha256:0", SOURCE="a b")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()[-1].split("|")
    assert words[0] == "build"
    assert {"SOURCE=a b", "PYTHON_IMAGE=example.com/python@sha256:0"} <= set(words)
    assert {f"VERSION={VERSION}", f"gpuplugin:{VERSION}"} <= set(words)


def _engine(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def _build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script with no engine on the PATH but those in `folder`."""
    for name in ("dirname", "git", "sed"):
        found = subprocess.run(["which", name], capture_output=True, text=True, check=True)
        (folder / name).symlink_to(found.stdout.strip())
    return subprocess.run(
        ["/bin/sh", str(ROOT / "deploy/build-image")],
        env={"PATH": str(folder)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_wheels_exist_for_the_machines_that_the_page_names(machine: str, tmp_path: Path) -> None:
    names = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["kubernetes"]
    python = re.findall(r"PYTHON_IMAGE=\S+python:([0-9.]+)-slim", TEXT)[-1]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--target"]
    command += [str(tmp_path), "--only-binary", ":all:", "-c", str(ROOT / "constraints.txt")]
    command += ["--implementation", "cp", "--python-version", python]
    for glibc in ("2_17", "2_28"):
        command += ["--platform", f"manylinux_{glibc}_{machine}"]
    command += ["--platform", f"manylinux2014_{machine}"]
    done = subprocess.run([*command, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
