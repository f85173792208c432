"""Builds an image with the first engine that works, and writes where it comes from: `make image`.

The provenance is an in-toto statement with a SLSA predicate. Uses no package: what builds the image
may have nothing but Python, git and an engine. Variables: docs/image.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[1]
CONTAINERFILE = ROOT / "deploy/Containerfile"
TARGETS = ("plugin", "sim")
ENGINES = ("podman", "docker", "buildah")
BUILD_TYPE = "urn:gpuplugin:containerfile:1"
"""Parameters as in `predicate`; docs/image.md describes them."""

JSON: TypeAlias = "dict[str, object]"


class CannotBuild(Exception):
    """No engine, or the engine failed; the text says it."""


def version() -> str:
    return _found(r'^VERSION = "(.*)"$', ROOT / "gpuplugin/version.py")


def tag(target: str) -> str:
    return version() if target == "plugin" else f"{version()}-{target}"


def base_image() -> str:
    """What the images are built on: the variable, else what the Containerfile names."""
    named = _found(r"^ARG PYTHON_IMAGE=(\S+)$", CONTAINERFILE)
    return os.environ.get("PYTHON_IMAGE") or named


def _found(pattern: str, path: Path) -> str:
    found = re.search(pattern, path.read_text(), re.MULTILINE)
    if found is None:
        raise CannotBuild(f"{path.relative_to(ROOT)} has no line {pattern}")
    return found[1]


def engine(names: Sequence[str] = ENGINES) -> str:
    """The first engine of these that answers.

    Raises:
        CannotBuild: there is none.
    """
    for name in names:
        try:
            done = subprocess.run([name, "version"], capture_output=True, check=False)
        except OSError:
            continue
        if done.returncode == 0:  # docker fails without its daemon
            return name
    raise CannotBuild("no engine works here: podman, docker (with its daemon) or buildah is needed")


@dataclass(frozen=True, slots=True)
class Source:
    """What is built: a commit, and whether the tree differs from it."""

    revision: str
    is_dirty: bool
    url: str


def source() -> Source:
    revision = os.environ.get("REVISION") or _git("rev-parse", "HEAD")
    return Source(
        revision or "unknown",
        bool(_git("status", "--porcelain", "--untracked-files=no")),
        os.environ.get("SOURCE", ""),
    )


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def build_words(target: str, image: str, found: Source) -> list[str]:
    """Arguments of an engine's `build`, without what only one engine knows."""
    words = ["-f", str(CONTAINERFILE.relative_to(ROOT)), "--target", target, "-t", image]
    arguments = {
        "PYTHON_IMAGE": os.environ.get("PYTHON_IMAGE"),
        "VERSION": version(),
        "REVISION": found.revision,
        "SOURCE": found.url,
    }
    for name, value in arguments.items():
        if value:
            words += ["--build-arg", f"{name}={value}"]
    return words


def materials(target: str, found: Source) -> list[JSON]:
    """What went into the image, each with its digest: the tree, the base, and the wheels."""
    every: list[JSON] = []
    if re.fullmatch("[0-9a-f]{40}", found.revision):
        uri = f"git+{found.url}" if found.url else "git+file:."
        every.append({"uri": uri, "digest": {"gitCommit": found.revision}})
    name, _, digest = base_image().partition("@sha256:")
    every.append({"uri": f"docker://{name}", "digest": {"sha256": digest}} if digest else
                 {"uri": f"docker://{name}"})  # fmt: skip
    every.append(_file(CONTAINERFILE))
    for file in ("build", target):
        path = ROOT / f"deploy/requirements/{file}.txt"
        every.append(_file(path))
        package = ""
        for word in path.read_text().split():
            if "==" in word and not word.startswith("#"):
                package = word.replace("==", "@")
            elif word.startswith("--hash=sha256:"):
                wheel = {"sha256": word.removeprefix("--hash=sha256:")}
                every.append({"uri": f"pkg:pypi/{package}", "digest": wheel})
    return every


def _file(path: Path) -> JSON:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"uri": f"file:{path.relative_to(ROOT)}", "digest": {"sha256": digest}}


def predicate(target: str, engine_name: str, found: Source, began: datetime) -> JSON:
    """The SLSA provenance of an image that was built from `began` until now."""
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "source": f"git+{found.url}@{found.revision}" if found.url else found.revision,
                "configPath": str(CONTAINERFILE.relative_to(ROOT)),
                "target": target,
                "pythonImage": base_image(),
            },
            "internalParameters": {"treeDiffersFromCommit": found.is_dirty},
            "resolvedDependencies": materials(target, found),
        },
        "runDetails": {
            "builder": {
                "id": os.environ.get("BUILDER_ID") or "urn:gpuplugin:make-image",
                "version": {engine_name: _engine_version(engine_name)},
            },
            "metadata": {
                "invocationId": os.environ.get("BUILD_ID", ""),
                "startedOn": _stamp(began),
                "finishedOn": _stamp(datetime.now(UTC)),
            },
        },
    }


def statement(image: str, digest: str, content: JSON) -> JSON:
    """The in-toto statement about an image with this `sha256:` digest."""
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": image, "digest": {"sha256": digest.removeprefix("sha256:")}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": content,
    }


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _engine_version(name: str) -> str:
    done = subprocess.run([name, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def build(target: str, output: Path, more: Sequence[str]) -> None:
    """Build an image of this machine's kind, and write its provenance to a folder.

    Raises:
        CannotBuild: see there.
    """
    name, found, began = engine(), source(), datetime.now(UTC)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotBuild(f"{output} is no folder to write to: {error.strerror}") from error
    image = os.environ.get("IMAGE") or f"gpuplugin:{tag(target)}"
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "id"
        words = [name, "build", *build_words(target, image, found)]
        # Podman and buildah leave HEALTHCHECK out of their own format.
        words += [] if name == "docker" else ["--format", "docker"]
        words += ["--iidfile", str(written), *more, "."]
        print(" ".join(words), flush=True)
        if subprocess.run(words, cwd=ROOT, check=False).returncode:
            raise CannotBuild(f"{name} could not build the image")
        digest = written.read_text().strip()
    content = statement(image, digest, predicate(target, name, found, began))
    path = output / f"gpuplugin-{tag(target)}.provenance.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"{image} is {digest}; {path} says where it comes from")


def main() -> int:
    parser = argparse.ArgumentParser(description="Build an image, and say where it comes from.")
    parser.add_argument("--target", choices=TARGETS, default="plugin")
    parser.add_argument("--output", type=Path, default=Path("dist"), metavar="DIR")
    parser.add_argument("words", nargs="*", metavar="WORD", help="for the engine, after --")
    parsed = parser.parse_args()
    try:
        build(parsed.target, parsed.output, parsed.words)
    except CannotBuild as error:
        print(f"make image: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
