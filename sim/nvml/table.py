"""All functions of the library: those that are simulated, and those that are only there."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Final

from sim.nvml.functions import (
    board,
    errors,
    events,
    fields,
    instances,
    inventory,
    links,
    load,
    mig,
    system,
)

if TYPE_CHECKING:
    from sim.nvml.abi import Function

_THEMES: Final = (system, inventory, load, board, errors, fields, links, mig, instances, events)

FUNCTIONS: Final[tuple[Function, ...]] = tuple(
    function for theme in _THEMES for function in theme.FUNCTIONS
)

LOCAL: Final = ("nvmlInit", "nvmlInit_v2", "nvmlInitWithFlags", "nvmlShutdown", "nvmlErrorString")
"""Those that the library answers by itself."""


def _not_simulated() -> tuple[str, ...]:
    text = resources.files("sim").joinpath("nvml", "not-simulated.txt").read_text("utf-8")
    return tuple(text.split())


NOT_SIMULATED: Final = _not_simulated()
"""Those that answer `NOT_SUPPORTED`, whatever they are asked."""


def function_table() -> str:
    """What each function answers, for the documents; those that answer alike share a row."""
    lines = ["| functions | answer | |", "|---|---|---|"]
    for theme in _THEMES:
        rows: dict[tuple[str, str], list[str]] = {}
        for one in theme.FUNCTIONS:
            rows.setdefault((one.source.value, one.note), []).append(one.name)
        lines.extend(
            f"| {_names(names)} | {answer} | {note} |" for (answer, note), names in rows.items()
        )
    lines.append(
        f"| the other {len(NOT_SIMULATED)} that the Python binding knows | not supported | |"
    )
    return "\n".join(lines)


def _names(names: list[str]) -> str:
    """Names with their versions behind them: `nvmlDeviceGetCount` (also `_v2`)."""
    versions: dict[str, list[str]] = {}
    for name in names:
        plain, _, version = name.partition("_v")
        versions.setdefault(plain, []).append(version and f"_v{version}")
    return ", ".join(_named(plain, found) for plain, found in versions.items())


def _named(plain: str, versions: list[str]) -> str:
    first, *others = sorted(versions)
    also = f" (also {', '.join(f'`{one}`' for one in others)})" if others else ""
    return f"`{plain}{first}`{also}"
