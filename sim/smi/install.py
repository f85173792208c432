"""The program `nvidia-smi` in a folder, for programs that look for one."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM: Final = "nvidia-smi"


def install(folder: Path) -> Path:
    """The folder, to go on the PATH, with an `nvidia-smi` that this Python runs."""
    target = folder / "bin" / PROGRAM
    text = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m gpuplugin sim smi "$@"\n'
    if not target.is_file() or target.read_text() != text:
        target.parent.mkdir(exist_ok=True)
        fresh = target.with_name(f".{PROGRAM}.{os.getpid()}")
        fresh.write_text(text)
        fresh.chmod(0o755)
        fresh.replace(target)
    return target.parent
