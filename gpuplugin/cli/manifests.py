"""`gpuplugin manifests`: the files that deploy the plugin, which come with it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from gpuplugin.cli.text import fail, table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

PARTS = ("kustomize", "prometheus", "grafana")
"""Folders of `deploy` that refer to each other."""
_OWN = "chosen"
_IMAGE = "gpuplugin"
_BUILDERS = (("kubectl", "kustomize"), ("kustomize", "build"))
_SUFFIXES = {".yaml", ".json"}


def manifests(parsed: argparse.Namespace) -> int:
    """List overlays and components, print the objects of some, or write the files."""
    deploy = _deploy()
    if parsed.output is not None:
        return _write(deploy, Path(parsed.output))
    if parsed.overlay is None and not parsed.component:
        print("\n".join(_listed(deploy)))
        return 0
    if problem := _unknown(deploy, parsed.overlay, parsed.component):
        return fail(problem)
    return _print(deploy, parsed.overlay, parsed.component, parsed.image)


def _deploy() -> Path:
    """In an installed package they are inside, in the repository beside it."""
    package = Path(__file__).parents[1]
    inside = package / "deploy"
    return inside if inside.is_dir() else package.parent / "deploy"


def _kinds(deploy: Path) -> Iterator[tuple[str, list[Path]]]:
    for kind in ("overlays", "components"):
        folder = deploy / "kustomize" / kind
        yield kind, sorted(one for one in folder.iterdir() if one.is_dir())


def _listed(deploy: Path) -> Iterator[str]:
    for kind, folders in _kinds(deploy):
        header = (kind.removesuffix("s").upper(), "")
        yield from table(header, [(one.name, _comment(one)) for one in folders])
        yield ""
    yield "'gpuplugin manifests --overlay NAME --component NAME' prints their objects."


def _comment(folder: Path) -> str:
    """The first sentence of the comment in a kustomization."""
    lines = (folder / "kustomization.yaml").read_text("utf-8").splitlines()
    text = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    return text.partition(". ")[0].partition(": docs/")[0].rstrip(".")


def _unknown(deploy: Path, overlay: str | None, components: Sequence[str]) -> str:
    known = {kind: [one.name for one in folders] for kind, folders in _kinds(deploy)}
    if overlay is not None and overlay not in known["overlays"]:
        return f"there is no overlay {overlay!r}; there are {', '.join(known['overlays'])}"
    for one in components:
        if one not in known["components"]:
            return f"there is no component {one!r}; there are {', '.join(known['components'])}"
    return ""


def _write(deploy: Path, folder: Path) -> int:
    try:
        for part in PARTS:
            _copy(deploy / part, folder / part)
    except OSError as error:
        return fail(f"the files cannot be written: {error}")
    print(f"written; to deploy: kubectl apply -k {folder}/kustomize/overlays/NAME")
    return 0


def _copy(source: Path, target: Path) -> None:
    """YAML and JSON alone; raises OSError where something else is in the way."""
    for path in sorted(source.rglob("*")):
        if path.suffix in _SUFFIXES:
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def _print(deploy: Path, overlay: str | None, components: Sequence[str], image: str | None) -> int:
    builder = next((one for one in _BUILDERS if shutil.which(one[0])), None)
    if builder is None:
        return fail(
            "neither kubectl nor kustomize is on the PATH, which put the objects together; "
            "--output DIR writes the files for them"
        )
    # kustomize takes relative paths alone, and nothing above its own folder.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in PARTS:
            _copy(deploy / part, folder / part)
        own = folder / "kustomize" / "overlays" / _OWN
        own.mkdir()
        text = yaml.safe_dump(_kustomization(overlay, components, image))
        (own / "kustomization.yaml").write_text(text, "utf-8")
        built = subprocess.run([*builder, str(own)], capture_output=True, text=True, check=False)
    if built.returncode != 0:
        return fail(f"{' '.join(builder)} failed: {built.stderr.strip()}")
    sys.stdout.write(built.stdout)
    return 0


def _kustomization(
    overlay: str | None, components: Sequence[str], image: str | None
) -> dict[str, object]:
    wanted: dict[str, object] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"../{overlay}" if overlay else "../../base"],
        "components": [f"../../components/{one}" for one in components],
    }
    if image is not None:
        name, _, digest = image.partition("@")
        repository, colon, tag = name.rpartition(":")
        if not colon or "/" in tag:  # the colon of a registry's port
            repository, tag = name, ""
        new = {"name": _IMAGE, "newName": repository}
        wanted["images"] = [
            new | ({"digest": digest} if digest else {"newTag": tag} if tag else {})
        ]
    return wanted
