"""The driver's functions as the Python binding calls them: how often, how long, with which code.

`python -m tools.hardware.calls FILE run ...` is `gpuplugin run ...` with a line in FILE for each.
This module loads nothing that the plugin does not load, so that memory is as in production.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pynvml

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Called:
    """One call; `began_ns` is of the monotonic clock, which all processes share."""

    function: str
    began_ns: int
    took_ns: int
    code: int


def watch(note: Callable[[Called], None]) -> None:
    """From now on, `note` is called after each call that the binding makes in this process."""
    find = pynvml._nvmlGetFunctionPointer  # noqa: SLF001 - all calls of the binding go through it

    def found(name: str) -> Callable[..., int]:
        try:
            function: Callable[..., int] = find(name)
        except pynvml.NVMLError as error:
            note(Called(name, time.monotonic_ns(), 0, int(error.value)))
            raise

        def timed(*arguments: object) -> int:
            began_ns = time.monotonic_ns()
            code = function(*arguments)
            note(Called(name, began_ns, time.monotonic_ns() - began_ns, code))
            return code

        return timed

    pynvml._nvmlGetFunctionPointer = found  # noqa: SLF001 - as above


def read(file: Path, from_ns: int, to_ns: int) -> list[Called]:
    """The calls that a watched process wrote down and that began in this time."""
    calls = []
    for line in file.read_text().splitlines():
        function, began_ns, took_ns, code = line.split()
        if from_ns <= int(began_ns) < to_ns:
            calls.append(Called(function, int(began_ns), int(took_ns), int(code)))
    return calls


def main() -> int:
    file, *arguments = sys.argv[1:]
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(call: Called) -> None:
        line = f"{call.function} {call.began_ns} {call.took_ns} {call.code}\n"
        os.write(descriptor, line.encode())

    watch(note)
    from gpuplugin.cli.main import main as gpuplugin

    return gpuplugin(arguments)


if __name__ == "__main__":
    sys.exit(main())
