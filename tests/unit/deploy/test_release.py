"""`make release`: what it publishes and in which order. Engine, registry and cosign are stubs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance

from gpuplugin.version import VERSION
from tests.deploy.binaries import program
from tests.e2e.containerfile import ROOT

if TYPE_CHECKING:
    from pathlib import Path

REGISTRY = "registry.example/team"
COMMIT = "c" * 40
IMAGE_DIGEST = "sha256:" + "1" * 64
CHART_DIGEST = "sha256:" + "2" * 64
GIT = f"""\
case "$1" in
    rev-parse) echo {COMMIT};;
    tag) echo v{VERSION};;
    log) echo 1700000000;;
esac
"""
PODMAN = f"""\
case "$1" in
    create) echo made;;
    cp) echo '{{}}' > "$3";;
    manifest) while [ "$1" != --digestfile ]; do shift; done; echo {IMAGE_DIGEST} > "$2";;
esac
"""
HELM = f"""\
[ "$1" != push ] || echo "Digest: {CHART_DIGEST}"
[ "$1" != package ] || exec "$REAL_HELM" "$@"
"""


def release(
    folder: Path, *words: str, **stubs: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the program with stubs alone on the PATH; what they were called with, in order."""
    log = folder / "log"
    log.touch()
    for name, script in (
        {"git": GIT, "podman": PODMAN, "helm": HELM, "cosign": ""} | stubs
    ).items():
        path = folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\n{script}\n')
        path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "tools.release", "--registry", REGISTRY,
         "--output", str(folder / "out"), *words],
        cwd=ROOT,
        env={
            "PATH": f"{folder}:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"),
            "REAL_HELM": program("helm"), "SOURCE": "https://example.com/g.git",
        },
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    return done, [line for line in log.read_text().splitlines() if not line.startswith("git ")]


def test_a_dry_run_makes_the_files_and_publishes_nothing(tmp_path: Path) -> None:
    done, calls = release(tmp_path, "--dry-run", "--publish-wheels")
    assert done.returncode == 0, done.stderr
    assert {shlex.split(one)[1] for one in calls} == {"version", "--version", "package"}
    files = {one.name for one in (tmp_path / "out").iterdir()}
    assert files == {
        f"gpuplugin-{VERSION}-py3-none-any.whl",
        f"gpuplugin_sim-{VERSION}-py3-none-any.whl",
        f"gpuplugin-{VERSION}.tgz",
        f"gpuplugin-{VERSION}.slsa.json",
        f"gpuplugin-{VERSION}-sim.slsa.json",
        "SHA256SUMS",
    }
    shown = re.findall(r"^\$ (?:\S*/)?(\S+ \S+)", done.stdout, re.MULTILINE)
    for published in ("podman build", "podman manifest", "helm push", "cosign sign-blob"):
        assert published in shown
    assert " uv publish " in done.stdout.splitlines()[-2], "what cannot be taken back comes last"
    assert f"would publish {VERSION} to {REGISTRY}" in done.stdout
    check_chart(tmp_path / "out" / f"gpuplugin-{VERSION}.tgz")
    check_sums(tmp_path / "out")


def check_chart(package: Path) -> None:
    with tarfile.open(package) as archive:
        content: dict[str, Any] = {}
        for name in ("Chart.yaml", "values.yaml", "README.md", "files/rules.yaml"):
            file = archive.extractfile(f"gpuplugin/{name}")
            assert file is not None
            content[name] = file.read().decode()
    about = yaml.safe_load(content["Chart.yaml"])
    assert about["home"] == "https://example.com/g.git"
    assert about["sources"] == [about["home"]]
    assert (about["version"], about["appVersion"]) == (VERSION, VERSION)
    assert yaml.safe_load(content["values.yaml"])["image"]["repository"] == f"{REGISTRY}/gpuplugin"
    assert "# " in content["values.yaml"], "with its comments"
    assert (
        "runbook_url: https://example.com/g/blob/main/docs/runbook.md#"
        in content["files/rules.yaml"]
    )
    runbook = yaml.safe_load(content["values.yaml"])["metrics"]["runbookUrl"]
    assert runbook == "https://example.com/g/blob/main/docs/runbook.md"


def check_sums(folder: Path) -> None:
    lines = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    named = {name: digest for digest, name in lines}
    others = {one.name for one in folder.iterdir()} - {"SHA256SUMS"}
    assert named.keys() == others
    for name, digest in named.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


@pytest.mark.slow
def test_a_release_signs_and_attests_by_digest(tmp_path: Path) -> None:
    done, calls = release(tmp_path)
    assert done.returncode == 0, done.stderr
    tags = (VERSION, f"{VERSION}-sim")
    builds = [one for one in calls if one.startswith("podman build ")]
    for target, tag, build in zip(("plugin", "sim"), tags, builds, strict=True):
        assert "--platform linux/amd64,linux/arm64" in build
        assert f"--target {target} --manifest {REGISTRY}/gpuplugin:{tag} " in build
        assert f"REVISION={COMMIT}" in build
    image, chart = f"{REGISTRY}/gpuplugin@{IMAGE_DIGEST}", f"{REGISTRY}/charts/gpuplugin"
    signed = [one for one in calls if one.startswith("cosign sign ")]
    assert signed == [
        f"cosign sign --yes --recursive {image}",
        f"cosign sign --yes --recursive {image}",
        f"cosign sign --yes {chart}@{CHART_DIGEST}",
    ]
    attested = [one for one in calls if one.startswith("cosign attest ")]
    assert all(one.endswith(f" {image}") for one in attested)
    kinds = [shlex.split(one)[4] for one in attested]
    assert kinds == ["slsaprovenance1", "cyclonedx", "cyclonedx"] * 2
    assert calls[-1].startswith("cosign sign-blob --yes --bundle ")
    assert not [one for one in calls if " uv " in one], "wheels only when asked"
    for tag in tags:
        content = json.loads((tmp_path / "out" / f"gpuplugin-{tag}.slsa.json").read_text())
        ParseDict(content, Provenance())
        assert (tmp_path / "out" / f"gpuplugin-{tag}-arm64.cdx.json").exists()


@pytest.mark.parametrize(
    ("stubs", "said"),
    [
        ({"git": GIT.replace(f"tag) echo v{VERSION}", "tag) echo v0")}, f"has no tag v{VERSION}"),
        ({"git": f"{GIT}\n[ $1 != status ] || echo M README.md"}, "the tree differs"),
        ({"podman": "exit 1", "docker": "exit 1"}, "podman or docker (with its daemon) is needed"),
    ],
)
def test_what_stands_in_the_way_is_told_before_anything_is_made(
    stubs: dict[str, str], said: str, tmp_path: Path
) -> None:
    done, calls = release(tmp_path, **stubs)
    assert done.returncode == 1
    assert said in done.stderr
    assert "nothing was published" in done.stderr
    assert {shlex.split(one)[1] for one in calls} == {"version"}
    assert not (tmp_path / "out").exists()


def test_files_of_an_earlier_release_are_not_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.whl").touch()
    done, _calls = release(tmp_path)
    assert done.returncode == 1
    assert "is not empty: remove it" in done.stderr


@pytest.mark.slow
def test_an_engine_that_fails_ends_it(tmp_path: Path) -> None:
    done, calls = release(tmp_path, podman="[ $1 = version ]")
    assert done.returncode == 1
    assert "podman ended with 1" in done.stderr
    assert not [one for one in calls if one.startswith(("cosign", "helm"))]
