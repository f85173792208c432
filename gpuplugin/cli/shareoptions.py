"""The options of `gpuplugin sim share`. What it does is in `gpuplugin.cli.simshare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

MECHANISMS = ("time-slicing", "mps", "mig", "exclusive")
LEVELS = ("default", "short", "medium", "long")


def add_share(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `commands`."""
    share = commands.add_parser(
        "share",
        help="what sharing a GPU costs",
        description="Simulate equal clients on one GPU, each of which works, rests and begins "
        "anew, and print what sharing costs them.",
    )
    share.set_defaults(module="simshare", function="share", wrong_usage=share.error)
    share.add_argument("--model", required=True, help="GPU model, as scenarios call it")
    share.add_argument("--clients", required=True, type=int, metavar="N", help="how many")
    share.add_argument(
        "--busy-ms", required=True, type=float, metavar="B", help="GPU work of each, when alone"
    )
    share.add_argument(
        "--idle-ms",
        type=float,
        default=0.0,
        metavar="I",
        help="then off the GPU for so long on average, between half and one and a half times "
        "of it (default 0)",
    )
    share.add_argument(
        "--occupancy",
        type=float,
        default=1.0,
        metavar="0..1",
        help="how much of the GPU the work fills (default 1.0: all of it, the dearest to switch)",
    )
    share.add_argument(
        "--memory-gib",
        type=float,
        default=0.0,
        metavar="M",
        help="memory of each beside its context (default 0)",
    )
    share.add_argument(
        "--mechanism", choices=MECHANISMS, default="time-slicing", help="default time-slicing"
    )
    share.add_argument(
        "--level",
        choices=LEVELS,
        help="length of time slices as nvidia-smi compute-policy sets it; only that of default was "
        "ever measured",
    )
    share.add_argument("--seed", type=int, default=0, metavar="S", help="default 0")
    share.add_argument("--json", action="store_true", help="print JSON")
