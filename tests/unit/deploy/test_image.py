"""`make image`: which engine builds what, and what the provenance says. The engine is a stub."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.statement_pb2 import Statement

from gpuplugin.version import VERSION
from tests.e2e.containerfile import FILE, ROOT

if TYPE_CHECKING:
    from pathlib import Path

DIGEST = "sha256:" + "5" * 64
BUILDS = f"""\
[ "$1" != --version ] || {{ echo "stub version 1"; exit; }}
[ "$1" = build ] || exit 0
printf "%s|" "$@"
while [ "$1" != --iidfile ]; do shift; done
printf {DIGEST} > "$2"
"""
COMMIT = "c" * 40


def engine(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def make_image(
    folder: Path, *words: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Run the program with no engine on the PATH but those in `folder`; the folder it writes to."""
    output = folder / "dist"
    done = subprocess.run(
        [sys.executable, "-m", "tools.image", "--output", str(output), *words],
        cwd=ROOT,
        env={"PATH": str(folder)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done, output


def provenance(folder: Path, target: str = "plugin", **environment: str) -> dict[str, Any]:
    engine(folder, "podman", BUILDS)
    done, output = make_image(folder, "--target", target, **environment)
    assert done.returncode == 0, done.stderr
    (path,) = output.iterdir()
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_without_an_engine_it_says_which_are_known(tmp_path: Path) -> None:
    done, _ = make_image(tmp_path)
    assert done.returncode == 1
    assert "podman, docker (with its daemon) or buildah is needed" in done.stderr


def test_the_first_engine_that_answers_builds(tmp_path: Path) -> None:
    engine(tmp_path, "docker", "exit 1")
    engine(tmp_path, "buildah", BUILDS)
    given = {"PYTHON_IMAGE": "example.com/python@sha256:0", "SOURCE": "a b", "REVISION": COMMIT}
    done, _ = make_image(tmp_path, "--", "--network", "host", **given)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()[1].split("|")
    assert words[0] == "build"
    assert {"SOURCE=a b", "PYTHON_IMAGE=example.com/python@sha256:0"} <= set(words)
    assert {f"VERSION={VERSION}", f"REVISION={COMMIT}", f"gpuplugin:{VERSION}"} <= set(words)
    assert words[words.index("--target") + 1] == "plugin"
    assert words[words.index("--format") + 1] == "docker", "HEALTHCHECK is in no other format"
    assert words[-4:-1] == ["--network", "host", "."]


def test_the_simulators_image_has_a_tag_of_its_own(tmp_path: Path) -> None:
    engine(tmp_path, "docker", BUILDS)
    done, output = make_image(tmp_path, "--target", "sim")
    words = done.stdout.splitlines()[1].split("|")
    assert words[words.index("-t") + 1] == f"gpuplugin:{VERSION}-sim"
    assert "--format" not in words
    assert [one.name for one in output.iterdir()] == [f"gpuplugin-{VERSION}-sim.provenance.json"]


def test_a_folder_that_cannot_be_is_told_before_an_image_is_built(tmp_path: Path) -> None:
    engine(tmp_path, "podman", BUILDS)
    deep, taken = tmp_path / "a" / "b", tmp_path / "taken"
    done, _ = make_image(tmp_path, "--output", str(deep))
    assert done.returncode == 0, done.stderr
    assert len(list(deep.iterdir())) == 1
    taken.write_text("a file")
    done, _ = make_image(tmp_path, "--output", str(taken))
    assert done.returncode == 1
    assert done.stderr == f"make image: {taken} is no folder to write to: File exists\n"
    assert not done.stdout, "nothing was built"


def test_ctrl_c_ends_it_without_a_traceback(tmp_path: Path) -> None:
    engine(tmp_path, "podman", '[ "$1" = build ] && kill -INT $PPID; exit 0')
    done, _ = make_image(tmp_path)
    assert (done.returncode, done.stderr) == (130, "")


def test_an_engine_that_fails_leaves_no_statement(tmp_path: Path) -> None:
    engine(tmp_path, "podman", "[ $1 = version ]")
    done, output = make_image(tmp_path)
    assert (done.returncode, list(output.iterdir())) == (1, [])
    assert "podman could not build the image" in done.stderr


def test_the_statement_is_one_of_in_toto_with_slsas_predicate(tmp_path: Path) -> None:
    found = provenance(tmp_path, REVISION=COMMIT, SOURCE="https://example.com/g.git")
    parsed = ParseDict(found, Statement())
    assert parsed.type == "https://in-toto.io/Statement/v1"
    assert parsed.predicate_type == "https://slsa.dev/provenance/v1"
    (subject,) = parsed.subject
    assert (subject.name, dict(subject.digest)) == (
        f"gpuplugin:{VERSION}",
        {"sha256": DIGEST.removeprefix("sha256:")},
    )
    content = ParseDict(found["predicate"], Provenance())
    assert content.build_definition.build_type.startswith("urn:")
    assert content.run_details.builder.id == "urn:gpuplugin:make-image"
    assert dict(content.run_details.builder.version) == {"podman": "stub version 1"}
    began, ended = content.run_details.metadata.started_on, content.run_details.metadata.finished_on
    assert began.ToSeconds() <= ended.ToSeconds()


def test_materials_are_the_commit_the_base_and_every_wheel_with_digests(tmp_path: Path) -> None:
    found = provenance(tmp_path, "sim", REVISION=COMMIT, SOURCE="https://example.com/g.git")
    definition = found["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["source"] == f"git+https://example.com/g.git@{COMMIT}"
    by_uri: dict[str, set[str]] = {}
    for one in definition["resolvedDependencies"]:
        (digest,) = one["digest"].values()
        by_uri.setdefault(one["uri"], set()).add(digest)
    assert by_uri["git+https://example.com/g.git"] == {COMMIT}
    base = definition["externalParameters"]["pythonImage"]
    assert f"ARG PYTHON_IMAGE={base}\n" in FILE.read_text()
    name, _, digest = base.partition("@sha256:")
    assert by_uri[f"docker://{name}"] == {digest}
    text = (ROOT / "deploy/requirements/sim.txt").read_bytes()
    assert by_uri["file:deploy/requirements/sim.txt"] == {hashlib.sha256(text).hexdigest()}
    simpy = [uri for uri in by_uri if uri.startswith("pkg:pypi/simpy@")]
    assert len(simpy) == 1
    hashes = {word for word in text.decode().split() if word.startswith("--hash=sha256:")}
    wheels = {one for uri, found in by_uri.items() if uri.startswith("pkg:") for one in found}
    assert {one.removeprefix("--hash=sha256:") for one in hashes} <= wheels


@pytest.mark.parametrize(
    ("variable", "value", "place"),
    [
        ("BUILDER_ID", "https://ci.example.com/runner", ("runDetails", "builder", "id")),
        ("BUILD_ID", "run-7", ("runDetails", "metadata", "invocationId")),
    ],
)
def test_ci_says_who_it_is(
    variable: str, value: str, place: tuple[str, ...], tmp_path: Path
) -> None:
    found: Any = provenance(tmp_path, **{variable: value})["predicate"]
    for key in place:
        found = found[key]
    assert found == value
