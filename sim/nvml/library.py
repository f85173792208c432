"""The C library and program: generated functions, and the build at the first use into a cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hal.nvml.api import Code
from sim.nvml.abi import Kind
from sim.nvml.call import text_of
from sim.nvml.dispatch import FUNCTIONS, NOT_SIMULATED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sim.nvml.abi import Argument, Function


def source() -> str:
    body = _body()
    return f"{body}\nconst uint64_t sim_abi = {_hash(body):#x}ull;\n"


def abi_hash() -> int:
    """Distinguishes a library and a node of different versions."""
    return _hash(_body())


def _hash(body: str) -> int:
    return int.from_bytes(hashlib.sha256(body.encode()).digest()[:8], "big")


def _body() -> str:
    lines = ['#include "client.h"', "#include <stddef.h>", ""]
    for number, function in enumerate(FUNCTIONS):
        lines.extend(_function(number, function))
    lines.extend(
        f"EXPORT int {name}(void) {{ return sim_unsupported(); }}" for name in NOT_SIMULATED
    )
    lines.append("const struct text sim_texts[] = {")
    lines.extend(f'    {{{code.value}, "{text_of(code)}"}},' for code in Code)
    lines.append("    {0, NULL}};")
    return "\n".join(lines) + "\n"


def _function(number: int, function: Function) -> Iterator[str]:
    name, arguments = function.name, function.arguments
    for position, argument in enumerate(arguments):
        if argument.kind is Kind.VERSIONED:
            versions = ", ".join(f"{version:#x}" for version in argument.versions)
            yield f"static const uint32_t {_versions(name, position)}[] = {{{versions}, 0}};"
    described = ", ".join(
        _described(name, position, argument) for position, argument in enumerate(arguments)
    )
    yield f"static const struct argument arguments_{name}[] = {{{described or '{0}'}}};"
    yield (
        f"static const struct function function_{name} = "
        f"{{{number}, {int(function.on_device)}, {len(arguments)}, arguments_{name}}};"
    )
    parameters = ", ".join(f"{_ctype(one)} a{at}" for at, one in enumerate(arguments)) or "void"
    values = ", ".join(
        f"a{at}" if one.kind is Kind.NUMBER else f"(uintptr_t)a{at}"
        for at, one in enumerate(arguments)
    )
    if function.inner:
        yield f"int sim_{name}({parameters});"
    yield f"int sim_{name}({parameters})" if function.inner else f"EXPORT int {name}({parameters})"
    yield "{"
    yield f"    const uint64_t values[] = {{{values or '0'}}};"
    yield f"    return sim_call(&function_{name}, values);"
    yield "}"
    yield ""


def _described(name: str, position: int, argument: Argument) -> str:
    versions = _versions(name, position) if argument.kind is Kind.VERSIONED else "NULL"
    return f"{{{argument.kind.name}, {argument.by}, {argument.size}, {versions}}}"


def _versions(name: str, position: int) -> str:
    return f"versions_{name}_{position}"


def _ctype(argument: Argument) -> str:
    if argument.kind is not Kind.NUMBER:
        return "void *"
    return "uint64_t" if ctypes.sizeof(argument.ctype) == 8 else "uint32_t"


LIBRARY: Final = "libnvidia-ml.so.1"
FLAGS: Final = (
    *("-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-Werror"),
    *("-fPIC", "-fvisibility=hidden", "-pthread", "-shared", f"-Wl,-soname,{LIBRARY}"),
    # One file for glibc and musl: it names no C library, and uses what both of them have.
    *("-nostdlib", "-U_FORTIFY_SOURCE", "-fno-stack-protector"),
)
PROGRAM: Final = "nvidia-smi"
_PROGRAM_FLAGS: Final = ("-std=c11", "-Os", "-Wall", "-Wextra", "-Werror", "-static", "-s")
_OF_BOTH: Final = ("visible.c", "visible.h")
_TIMEOUT_S: Final = 120.0
_COMPILERS: Final = ("cc", "gcc", "clang")
_STATIC_COMPILERS: Final = ("musl-gcc", *_COMPILERS)
"""A program of musl is a twentieth of the size of one of glibc."""


class CannotBuild(Exception):
    """A file cannot be built; the text says why and what to do."""


def built_library(environment: Mapping[str, str] | None = None) -> Path:
    """The library's file, built now if it was not before; raises `CannotBuild`."""
    return _built(LIBRARY, FLAGS, _sources(), environment)


def built_program(environment: Mapping[str, str] | None = None) -> Path:
    """`nvidia-smi` for containers, without libraries, as `built_library`; raises `CannotBuild`."""
    folder = resources.files("sim").joinpath("smi", "client")
    sources = {name: text for name, text in _sources().items() if name in _OF_BOTH}
    sources |= {file.name: file.read_text("utf-8") for file in folder.iterdir()}
    return _built(PROGRAM, _PROGRAM_FLAGS, sources, environment)


def _built(
    name: str,
    flags: tuple[str, ...],
    sources: Mapping[str, str],
    environment: Mapping[str, str] | None,
) -> Path:
    environment = os.environ if environment is None else environment
    digest = hashlib.sha256("\0".join((*flags, *sources.values())).encode()).hexdigest()[:16]
    cached = _cache(environment) / digest / name
    for there in (Path(sys.prefix) / "share/gpuplugin" / digest / name, cached):
        if there.is_file() and os.access(there, os.R_OK):
            return there
    command = compiler(environment, name)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        return _build([*command, *flags], sources, cached)
    except OSError:
        # A home that cannot be written to; the folder stays for the process.
        private = Path(tempfile.mkdtemp(prefix="gpuplugin-nvml-")) / name
        return _build([*command, *flags], sources, private)


def _sources() -> dict[str, str]:
    folder = resources.files("sim").joinpath("nvml", "library")
    written = {file.name: file.read_text("utf-8") for file in folder.iterdir()}
    return {**dict(sorted(written.items())), "functions.c": source()}


def _cache(environment: Mapping[str, str]) -> Path:
    given = environment.get("XDG_CACHE_HOME", "")
    base = Path(given) if given.startswith("/") else Path(environment.get("HOME", "/")) / ".cache"
    return base / "gpuplugin"


def compiler(environment: Mapping[str, str], what: str = LIBRARY) -> list[str]:
    """The command of a C compiler for a file; raises `CannotBuild` if there is none."""
    given = shlex.split(environment.get("CC", ""))
    usual = _STATIC_COMPILERS if what == PROGRAM else _COMPILERS
    candidates = [given] if given else [[name] for name in usual]
    for candidate in candidates:
        if shutil.which(candidate[0], path=environment.get("PATH")):
            return candidate
    names = ", ".join(candidate[0] for candidate in candidates)
    raise CannotBuild(
        f"the simulated {what} is built with a C compiler, and there is none ({names}). "
        "Install gcc, or name a compiler in $CC; all else works without"
    )


def _build(command: list[str], sources: Mapping[str, str], target: Path) -> Path:
    """Build beside the target and put it in place in one step, for others may be doing the same."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as name:
        folder = Path(name)
        for file, text in sources.items():
            (folder / file).write_text(text, "utf-8")
        made = folder / target.name
        files = [str(folder / file) for file in sources if file.endswith(".c")]
        command = [*command, "-o", str(made), *files]
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
            raise CannotBuild(f"{command[0]} did not end within {_TIMEOUT_S:g} s") from error
        if done.returncode:
            raise CannotBuild(f"{shlex.join(command)} failed:\n{done.stderr.strip()}")
        made.replace(target)
    return target
