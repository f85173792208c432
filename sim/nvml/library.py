"""The C library: its generated functions, and its build at the first use into the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
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
)
_TIMEOUT_S: Final = 120.0
_COMPILERS: Final = ("cc", "gcc", "clang")


class CannotBuild(Exception):
    """The library cannot be built; the text says why and what to do."""


def built_library(environment: Mapping[str, str] | None = None) -> Path:
    """The library's file, built now if it was not before; raises `CannotBuild`."""
    environment = os.environ if environment is None else environment
    sources = _sources()
    digest = hashlib.sha256("\0".join((*FLAGS, *sources.values())).encode()).hexdigest()[:16]
    cached = _cache(environment) / digest / LIBRARY
    if cached.is_file() and os.access(cached, os.R_OK):
        return cached
    command = compiler(environment)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        return _build(command, sources, cached)
    except OSError:
        # A home that cannot be written to; the folder stays for the process.
        private = Path(tempfile.mkdtemp(prefix="gpuplugin-nvml-")) / LIBRARY
        return _build(command, sources, private)


def _sources() -> dict[str, str]:
    folder = resources.files("sim").joinpath("nvml", "library")
    written = {file.name: file.read_text("utf-8") for file in folder.iterdir()}
    return {**dict(sorted(written.items())), "functions.c": source()}


def _cache(environment: Mapping[str, str]) -> Path:
    given = environment.get("XDG_CACHE_HOME", "")
    base = Path(given) if given.startswith("/") else Path(environment.get("HOME", "/")) / ".cache"
    return base / "gpuplugin"


def compiler(environment: Mapping[str, str]) -> list[str]:
    """The command of a C compiler; raises `CannotBuild` if there is none."""
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
