"""The stand-in for CUDA's library, `standin.c`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("standin.c")


def built(folder: Path) -> Path:
    """A folder with the library; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or pytest.skip("no C compiler")
    made = folder / "cuda"
    made.mkdir()
    library = str(made / "libcuda.so.1")
    flags = ("-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
    subprocess.run([compiler, *flags, "-o", library, str(SOURCE), "-ldl"], check=True)
    return made
