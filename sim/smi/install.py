"""The program `nvidia-smi` in a folder, for programs that look for one."""

from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path
from typing import Final

from gpuplugin.daemon.wholefiles import write_whole

PROGRAM: Final = "nvidia-smi"


def install(folder: Path) -> Path:
    """A folder to go on the PATH, with an `nvidia-smi` that this Python runs.

    It is in `folder`, or in a temporary one if that cannot be written to.
    """
    text = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m gpuplugin sim smi "$@"\n'
    try:
        return _write(folder / "bin" / PROGRAM, text)
    except OSError:
        private = Path(tempfile.mkdtemp(prefix="gpuplugin-smi-"))
        return _write(private / "bin" / PROGRAM, text)


def _write(target: Path, text: str) -> Path:
    if not target.is_file() or target.read_text() != text:
        target.parent.mkdir(exist_ok=True)
        write_whole(target, text, 0o755)
    return target.parent
