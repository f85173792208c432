"""Files that a reader sees whole or not at all, also after a crash of the machine."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_whole(path: Path, text: str, mode: int = 0o600, *, synced: bool = False) -> None:
    """Write so that a reader sees the old file or the new one, whole.

    `synced` so that this is true after a crash of the machine as well; for the new one to be there
    then, sync the folder, too. Raises `OSError`; the old file is there then, and nothing else.
    """
    # Who reads all of a folder's files goes by the end of their names.
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        with temporary.open("x", encoding="utf-8") as stream:
            stream.write(text)
            os.fchmod(stream.fileno(), mode)
            if synced:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def remove_unfinished(path: Path) -> None:
    """Remove what writers of this file left who were killed; nobody may be writing it now.

    Raises `OSError`.
    """
    for left in path.parent.glob(f".{path.name}.*"):
        left.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make sure that names that were made or removed in a folder stay so; raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
