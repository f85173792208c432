"""Writes the part of the library's C source that follows from the table of functions."""

from __future__ import annotations

import ctypes
import hashlib
from typing import TYPE_CHECKING

from sim.nvml.abi import Kind
from sim.nvml.codes import Code, text_of
from sim.nvml.table import FUNCTIONS, NOT_SIMULATED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sim.nvml.abi import Argument, Function


def source() -> str:
    """The C source; the same table gives the same text."""
    body = _body()
    return f"{body}\nconst uint64_t sim_abi = {_hash(body):#x}ull;\n"


def abi_hash() -> int:
    """What tells a library and a node of different versions apart."""
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
    values = ", ".join(_value(one, f"a{at}") for at, one in enumerate(arguments)) or "0"
    yield f"EXPORT int {name}({parameters})"
    yield "{"
    yield f"    const uint64_t values[] = {{{values}}};"
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


def _value(argument: Argument, name: str) -> str:
    return name if argument.kind is Kind.NUMBER else f"(uintptr_t){name}"
