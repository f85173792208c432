"""All functions of the library: those that are simulated, and those that are only there."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Final

from sim.nvml.functions import board, errors, events, fields, inventory, links, load, mig, system

if TYPE_CHECKING:
    from sim.nvml.abi import Function

FUNCTIONS: Final[tuple[Function, ...]] = (
    *system.FUNCTIONS,
    *inventory.FUNCTIONS,
    *load.FUNCTIONS,
    *board.FUNCTIONS,
    *errors.FUNCTIONS,
    *fields.FUNCTIONS,
    *links.FUNCTIONS,
    *mig.FUNCTIONS,
    *events.FUNCTIONS,
)

LOCAL: Final = ("nvmlInit", "nvmlInit_v2", "nvmlInitWithFlags", "nvmlShutdown", "nvmlErrorString")
"""Those that the library answers by itself."""


def _not_simulated() -> tuple[str, ...]:
    text = resources.files("sim").joinpath("nvml", "not-simulated.txt").read_text("utf-8")
    return tuple(text.split())


NOT_SIMULATED: Final = _not_simulated()
"""Those that answer `NOT_SUPPORTED`, whatever they are asked."""


def function_table() -> str:
    """What each function answers, for the documents."""
    lines = ["| function | answer | |", "|---|---|---|"]
    lines.extend(
        f"| `{one.name}` | {one.source.value} | {one.note} |"
        for one in sorted(FUNCTIONS, key=lambda one: one.name)
    )
    return "\n".join(lines)
