"""Plain text for terminals and pipes: tables and sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.types import GIB

if TYPE_CHECKING:
    from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose columns are as wide as their longest cell."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def gib(size_bytes: int) -> str:
    """A size in GiB with one decimal."""
    return f"{size_bytes / GIB:.1f} GiB"
