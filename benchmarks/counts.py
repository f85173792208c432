"""Counts that are the same on every machine: bytecode instructions, blocks of memory, modules.

They stand in for time where a check must not depend on who else uses the machine.
"""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from _typeshed import TraceFunction


def instructions(function: Callable[[], object]) -> int:
    """Bytecode instructions that a call of `function` runs, in all Python code below it.

    It is called once before, for what only the first call does. Work inside C functions is not
    seen. The number depends on the version of Python.
    """
    count = 0

    def trace(frame: FrameType, event: str, _argument: object) -> TraceFunction | None:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    function()
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def kept_bytes(function: Callable[[], object], calls: int) -> int:
    """What is still allocated after so many calls, more than after as many before them."""
    for _ in range(calls):
        function()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(calls):
            function()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return after - before


def peak_bytes(function: Callable[[], object]) -> int:
    """The most that one call has allocated at a time."""
    function()
    tracemalloc.start()
    try:
        function()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak


def loaded_modules(imports: Sequence[str]) -> frozenset[str]:
    """The modules that a process of its own has loaded when it has imported these."""
    script = f"import sys, {', '.join(imports)}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return frozenset(done.stdout.split())
