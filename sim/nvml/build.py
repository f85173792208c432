"""Builds the library with the C compiler at its first use, into the user's cache."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

LIBRARY: Final = "libnvidia-ml.so.1"
FLAGS: Final = (
    *("-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-Werror"),
    *("-fPIC", "-fvisibility=hidden", "-pthread", "-shared", f"-Wl,-soname,{LIBRARY}"),
)
_TIMEOUT_S: Final = 120.0
_COMPILERS: Final = ("cc", "gcc", "clang")


class CannotBuild(Exception):
    """The library cannot be built; the text says why and what to do."""


def built_library(environment: Mapping[str, str] | None = None) -> Path:
    """The library's file, built now if it was not before. Several may build it at once.

    Raises:
        CannotBuild: no compiler, or it failed.
    """
    environment = os.environ if environment is None else environment
    sources = _sources()
    digest = hashlib.sha256("\0".join((*FLAGS, *sources.values())).encode()).hexdigest()[:16]
    cached = _cache(environment) / digest / LIBRARY
    if cached.is_file() and os.access(cached, os.R_OK):
        return cached
    compiler = _compiler(environment)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        return _build(compiler, sources, cached)
    except OSError:
        # A home that cannot be written to; the folder stays, whoever runs us uses it.
        private = Path(tempfile.mkdtemp(prefix="gpuplugin-nvml-")) / LIBRARY
        return _build(compiler, sources, private)


def _sources() -> dict[str, str]:
    """The C files by name."""
    # Imported late: the table of functions brings the Python binding of NVML with it.
    from sim.nvml.generate import source

    folder = resources.files("sim").joinpath("nvml", "library")
    written = {file.name: file.read_text("utf-8") for file in folder.iterdir()}
    return {**dict(sorted(written.items())), "functions.c": source()}


def _cache(environment: Mapping[str, str]) -> Path:
    given = environment.get("XDG_CACHE_HOME", "")
    base = Path(given) if given.startswith("/") else Path(environment.get("HOME", "/")) / ".cache"
    return base / "gpuplugin"


def _compiler(environment: Mapping[str, str]) -> list[str]:
    given = shlex.split(environment.get("CC", ""))
    candidates = [given] if given else [[name] for name in _COMPILERS]
    for candidate in candidates:
        if shutil.which(candidate[0], path=environment.get("PATH")):
            return candidate
    names = ", ".join(candidate[0] for candidate in candidates)
    raise CannotBuild(
        f"the simulated {LIBRARY} is built with a C compiler, and there is none ({names}). "
        "Install gcc, or name a compiler in $CC; all else works without"
    )


def _build(compiler: list[str], sources: Mapping[str, str], target: Path) -> Path:
    """Build beside the target and put it in place in one step, for others may be doing the same."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as name:
        folder = Path(name)
        for file, text in sources.items():
            (folder / file).write_text(text, "utf-8")
        made = folder / LIBRARY
        files = [str(folder / file) for file in sources if file.endswith(".c")]
        command = [*compiler, *FLAGS, "-o", str(made), *files]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CannotBuild(f"{compiler[0]} did not end within {_TIMEOUT_S:g} s") from error
        if done.returncode:
            raise CannotBuild(f"{shlex.join(command)} failed:\n{done.stderr.strip()}")
        made.replace(target)
    return target
