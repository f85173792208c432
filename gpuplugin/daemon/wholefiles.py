"""Files that a reader sees whole or not at all, also after a crash of the machine."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_whole(path: Path, text: str | bytes, mode: int = 0o600, *, synced: bool = False) -> None:
    """Write so that a reader sees the old file or the new one, whole.

    `synced` so that this is true after a crash of the machine as well; for the new one to be there
    then, sync the folder, too. Raises `OSError`; the old file is there then, and nothing else.
    """
    # Who reads all of a folder's files goes by the end of their names.
    temporary = f"{path.parent}/.{path.name}.{os.urandom(8).hex()}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb", buffering=0) as stream:  # noqa: PTH123 - it is open
            content = memoryview(text.encode() if isinstance(text, str) else text)
            while content:
                content = content[stream.write(content) :]
            os.fchmod(descriptor, mode)
            if synced:
                os.fsync(descriptor)
        os.replace(temporary, path)  # noqa: PTH105 - a path costs more than the call
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
        raise


def remove_unfinished(path: Path) -> None:
    """Remove what writers of this file left who were killed; nobody may be writing it now.

    Raises `OSError`.
    """
    start = f".{path.name}."
    for name in os.listdir(path.parent):  # noqa: PTH208 - a glob compiles its pattern each time
        if name.startswith(start):
            (path.parent / name).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make sure that names that were made or removed in a folder stay so; raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
