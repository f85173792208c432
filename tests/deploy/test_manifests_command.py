"""`gpuplugin manifests`: what it lists, prints and writes is what is shipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.binaries import program
from tests.deploy.rendering import (
    COMPONENTS,
    OVERLAYS,
    built,
    built_with,
    names,
    objects,
    plugin_of,
)


def manifests(*words: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command, with kubectl on the PATH if no other is given."""
    if path is None:
        path = f"{Path(program('kubectl')).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, "-m", "gpuplugin", "manifests", *words],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_all_overlays_and_components_are_listed_with_what_they_are() -> None:
    rows = [line.split(None, 1) for line in manifests(path="").stdout.splitlines()]
    listed = {row[0] for row in rows if len(row) == 2}
    assert listed >= {*names(OVERLAYS), *names(COMPONENTS)}


def test_an_overlay_is_printed_as_it_is_applied() -> None:
    assert objects(manifests("--overlay", "simulated").stdout) == built(OVERLAYS / "simulated")


def test_components_are_added_to_the_base() -> None:
    printed = objects(manifests("--component", "replicas-4", "--component", "monitoring").stdout)
    assert printed == built_with("replicas-4", "monitoring")


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("registry.example:5000/gp", "registry.example:5000/gp:0.1.0-sim"),
        ("registry.example:5000/gp:2", "registry.example:5000/gp:2"),
        ("gp:2", "gp:2"),
        (f"gp@sha256:{'a' * 64}", f"gp@sha256:{'a' * 64}"),
        (f"host:1/gp:2@sha256:{'a' * 64}", f"host:1/gp@sha256:{'a' * 64}"),
    ],
)
def test_an_image_takes_the_place_of_the_usual_one(image: str, expected: str) -> None:
    printed = objects(manifests("--overlay", "simulated", "--image", image).stdout)
    assert plugin_of(printed)["image"] == expected


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--overlay", "nothing"), "there is no overlay 'nothing'; there are classic, "),
        (("--component", "nothing"), "there is no component 'nothing'; there are alerts, "),
    ],
)
def test_what_is_not_there_is_told_with_what_is(words: tuple[str, ...], told: str) -> None:
    outcome = manifests(*words, path="")
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert told in outcome.stderr


def test_without_kubectl_it_says_what_else_can_be_done(tmp_path: Path) -> None:
    refused = manifests("--overlay", "simulated", path="")
    assert refused.returncode == 1
    assert "--output" in refused.stderr
    written = manifests("--output", str(tmp_path / "deploy"), path="")
    assert written.returncode == 0
    assert built(tmp_path / "deploy/kustomize/overlays/simulated") == built(OVERLAYS / "simulated")
    assert {one.suffix for one in tmp_path.rglob("*") if one.is_file()} <= {".yaml", ".json"}
    (tmp_path / "file").touch()
    failed = manifests("--output", str(tmp_path / "file"), path="")
    assert failed.returncode == 1
    assert "cannot be written" in failed.stderr
