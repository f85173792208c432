"""Building the library: once, by several at a time, without a home, and without a compiler."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from sim.nvml.library import LIBRARY, CannotBuild, built_library, built_program

if TYPE_CHECKING:
    from pathlib import Path


def surroundings(**variables: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], **variables}


def test_it_is_built_once_into_the_cache(library: Path, tmp_path: Path) -> None:
    cache = surroundings(XDG_CACHE_HOME=str(tmp_path))
    built = built_library(cache)
    assert built.name == LIBRARY
    assert built.is_relative_to(tmp_path / "gpuplugin")
    before = built.stat()
    assert built_library(cache) == built
    assert built.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.slow
def test_several_may_build_it_at_once(library: Path, tmp_path: Path) -> None:
    cache = surroundings(XDG_CACHE_HOME=str(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        built = set(pool.map(lambda _: built_library(cache), range(4)))
    (only,) = built
    assert [path.name for path in only.parent.iterdir()] == [LIBRARY]


def test_without_a_place_in_the_cache_it_is_built_elsewhere(library: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    built = built_library(surroundings(XDG_CACHE_HOME=str(tmp_path / "file")))
    assert built.read_bytes()[:4] == b"\x7fELF"
    assert built.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("variables", "named"), [({"PATH": "/nowhere"}, "gcc"), ({"CC": "no-such-cc -x"}, "no-such-cc")]
)
def test_without_a_compiler_it_says_what_to_do(
    tmp_path: Path, variables: dict[str, str], named: str
) -> None:
    with pytest.raises(CannotBuild, match=named) as error:
        built_library(surroundings(XDG_CACHE_HOME=str(tmp_path)) | variables)
    assert "Install gcc" in str(error.value)


def test_what_was_built_with_the_installation_needs_no_compiler(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = built_program(surroundings(XDG_CACHE_HOME=str(tmp_path / "share")))
    without = surroundings(XDG_CACHE_HOME=str(tmp_path / "cache")) | {"PATH": "/nowhere"}
    with pytest.raises(CannotBuild, match=r"nvidia-smi is built with a C compiler.*musl-gcc"):
        built_program(without)

    monkeypatch.setattr(sys, "prefix", str(tmp_path))

    assert built_program(without) == program


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(CannotBuild, match="false"):
        built_library(surroundings(XDG_CACHE_HOME=str(tmp_path), CC="false"))
