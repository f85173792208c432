"""Publishes a release: wheels, images, chart, bills of materials, provenance, signatures.

`make release REGISTRY=registry.example/team`; `DRY_RUN=1` makes what needs no registry, and prints
the other commands. Needs podman or docker, helm, cosign and git. How to: CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tools.image import (
    ROOT,
    TARGETS,
    CannotBuild,
    Source,
    build_words,
    predicate,
    source,
    tag,
    version,
)
from tools.image import engine as engine_that_works

if TYPE_CHECKING:
    from collections.abc import Sequence

CHART = ROOT / "deploy/helm/gpuplugin"
DISTRIBUTIONS = (ROOT, ROOT / "distributions/sim")
ENGINES = ("podman", "docker")
PLATFORMS = ("linux/amd64", "linux/arm64")
RUNBOOK = "https://github.com/gpuplugin/gpuplugin/blob/main/docs/runbook.md"
"""As the tree names the runbook's page; a release has it where its source is published."""
UNKNOWN_DIGEST = "sha256:DIGEST"
"""In the commands that a dry run prints."""


class CannotRelease(Exception):
    """Something is missing or failed; the text says what."""


@dataclass
class Release:
    """What is published where; `output` gets the files of the release."""

    registry: str
    output: Path
    is_dry: bool
    publish_wheels: bool
    source: Source
    engine: str
    files: list[Path] = field(default_factory=list)

    def run(self, words: Sequence[str], *, where: Path = ROOT, local: bool = False) -> str:
        """Run a command and return its output; a dry run prints those that are not local.

        Raises:
            CannotRelease: it failed.
        """
        print(f"$ {shlex.join(words)}", flush=True)
        if self.is_dry and not local:
            return ""
        epoch = {"SOURCE_DATE_EPOCH": _git("log", "-1", "--format=%ct") or "0"}
        done = subprocess.run(
            words, cwd=where, env=os.environ | epoch, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise CannotRelease(f"{words[0]} ended with {done.returncode}")
        return done.stdout

    # --- what is made --------------------------------------------------------------------------

    def wheels(self) -> None:
        for folder in DISTRIBUTIONS:
            words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
            self.run([*words, "-d", str(self.output)], where=folder, local=True)
        self.files += sorted(self.output.glob("*.whl"))

    def image(self, target: str) -> None:
        """Build for every platform, push, sign by digest, and attest."""
        name, began = f"{self.registry}/gpuplugin:{tag(target)}", datetime.now(UTC)
        digest = self._built_and_pushed(target, name)
        whole = f"{name.rpartition(':')[0]}@{digest}"
        self._cosign("sign", "--recursive", whole)
        path = self.output / f"gpuplugin-{tag(target)}.slsa.json"
        content = predicate(target, self.engine, self.source, began)
        path.write_text(json.dumps(content, indent=2) + "\n")
        self.files.append(path)
        self._cosign("attest", "--type", "slsaprovenance1", "--predicate", str(path), whole)
        for platform in PLATFORMS:
            machine = platform.rpartition("/")[2]
            bill = self.output / f"gpuplugin-{tag(target)}-{machine}.cdx.json"
            # Created and not run: the other machine's program could not.
            made = self.run([self.engine, "create", "--platform", platform, whole]).strip()
            container = made or "CONTAINER"
            self.run([self.engine, "cp", f"{container}:/app/sbom.cdx.json", str(bill)])
            self.run([self.engine, "rm", container])
            self._cosign("attest", "--type", "cyclonedx", "--predicate", str(bill), whole)
            if bill.exists():
                self.files.append(bill)

    def _built_and_pushed(self, target: str, name: str) -> str:
        platforms = ",".join(PLATFORMS)
        words = build_words(target, name, self.source)
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "digest"
            if self.engine == "docker":
                words = ["docker", "buildx", "build", "--platform", platforms, *words]
                self.run([*words, "--push", "--metadata-file", str(written), "."])
                key = "containerimage.digest"
                digest = json.loads(written.read_text())[key] if written.exists() else ""
            else:
                words[words.index("-t")] = "--manifest"
                words = ["podman", "build", "--platform", platforms, "--format", "docker", *words]
                self.run([*words, "."])
                push = ["podman", "manifest", "push", "--all", "--digestfile", str(written)]
                self.run([*push, name, f"docker://{name}"])
                digest = written.read_text().strip() if written.exists() else ""
        if not (digest or self.is_dry):
            raise CannotRelease(f"{self.engine} told no digest of {name}")
        return digest or UNKNOWN_DIGEST

    def chart(self) -> None:
        """Package the chart with the registry's image as its default, push and sign it."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "gpuplugin"
            shutil.copytree(CHART, copy)
            values = (copy / "values.yaml").read_text()
            image = f"  repository: {self.registry}/gpuplugin"
            (copy / "values.yaml").write_text(values.replace("  repository: gpuplugin", image, 1))
            about = yaml.safe_load((copy / "Chart.yaml").read_text())
            if self.source.url:
                about |= {"home": self.source.url, "sources": [self.source.url]}
                home = f"{self.source.url.removesuffix('.git')}/blob/main/docs/runbook.md"
                for name in ("values.yaml", "templates/_helpers.tpl", "files/rules.yaml"):
                    text = (copy / name).read_text()
                    (copy / name).write_text(text.replace(RUNBOOK, home))
            (copy / "Chart.yaml").write_text(yaml.safe_dump(about, sort_keys=False))
            self.run(["helm", "package", str(copy), "--destination", str(self.output)], local=True)
        (package,) = self.output.glob("*.tgz")
        self.files.append(package)
        said = self.run(["helm", "push", str(package), f"oci://{self.registry}/charts"])
        found = re.search(r"^Digest: (sha256:[0-9a-f]{64})", said, re.MULTILINE)
        if found is None and not self.is_dry:
            raise CannotRelease("helm push told no digest")
        digest = found[1] if found else UNKNOWN_DIGEST
        self._cosign("sign", f"{self.registry}/charts/gpuplugin@{digest}")

    def sums(self) -> None:
        """Checksums of all files, and one signature for them."""
        lines = [
            f"{hashlib.sha256(one.read_bytes()).hexdigest()}  {one.name}"
            for one in sorted(self.files)
        ]
        path = self.output / "SHA256SUMS"
        path.write_text("\n".join(lines) + "\n")
        bundle = self.output / "SHA256SUMS.sigstore.json"
        self._cosign("sign-blob", "--bundle", str(bundle), str(path))

    def upload(self) -> None:
        """Wheels go last: an index takes a version once and for all."""
        if self.publish_wheels:
            wheels = [str(one) for one in self.files if one.suffix == ".whl"]
            self.run([sys.executable, "-m", "uv", "publish", *wheels])

    def _cosign(self, verb: str, *words: str) -> None:
        key = os.environ.get("COSIGN_KEY")
        self.run(["cosign", verb, "--yes", *(["--key", key] if key else []), *words])


def missing(found: Source, engine: str | None) -> list[str]:
    """What stands in the way of a release."""
    wanted = [] if engine else ["podman or docker (with its daemon) is needed"]
    wanted += [f"{name} is needed" for name in ("helm", "cosign") if not shutil.which(name)]
    if found.is_dirty:
        wanted.append("the tree differs from its commit: commit or stash the changes")
    tags = _git("tag", "--points-at", "HEAD").split()
    if f"v{version()}" not in tags:
        wanted.append(f"the commit has no tag v{version()}: git tag -s v{version()}")
    return wanted


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _engine() -> str | None:
    try:
        return engine_that_works(ENGINES)
    except CannotBuild:
        return None


def release(parsed: argparse.Namespace) -> None:
    """Do it, or a part of it if it is a dry run.

    Raises:
        CannotRelease: see there.
    """
    found, engine = source(), _engine()
    lacking = missing(found, engine)
    for one in lacking:
        print(f"make release: {one}", file=sys.stderr)
    if lacking and not parsed.dry_run:
        raise CannotRelease("nothing was published")
    output: Path = parsed.output
    if output.exists() and any(output.iterdir()):
        raise CannotRelease(f"{output} is not empty: remove it")
    output.mkdir(parents=True, exist_ok=True)
    made = Release(
        parsed.registry.rstrip("/"), output.absolute(), parsed.dry_run, parsed.publish_wheels,
        found, engine or ENGINES[0],
    )  # fmt: skip
    made.wheels()
    for target in TARGETS:
        made.image(target)
    made.chart()
    made.sums()
    made.upload()
    print(f"{'would publish' if parsed.dry_run else 'published'} {version()} to {made.registry}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Publish a release.")
    parser.add_argument("--registry", required=True, metavar="HOST/PATH")
    parser.add_argument(
        "--output", type=Path, default=ROOT / f"dist/release-{version()}", metavar="DIR"
    )
    parser.add_argument("--dry-run", action="store_true", help="publish nothing, print commands")
    parser.add_argument("--publish-wheels", action="store_true", help="to PyPI, with uv publish")
    try:
        release(parser.parse_args())
    except CannotRelease as error:
        print(f"make release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
