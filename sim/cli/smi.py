"""`gpuplugin sim smi`: `nvidia-smi` for the simulated node."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from sim.smi.program import main

if TYPE_CHECKING:
    from gpuplugin.cli.parser import Commands


def add(commands: Commands) -> None:
    # Its arguments look like options, and none of them is one of this parser.
    smi = commands.add_parser(
        "smi",
        help="nvidia-smi for the simulated node; 'sim smi -h' lists its options",
        prefix_chars="\0",
        add_help=False,
    )
    smi.set_defaults(module="sim.cli.smi", function="smi")
    smi.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENTS")


def smi(parsed: argparse.Namespace) -> int:
    """The exit status of `nvidia-smi`."""
    return main(parsed.arguments, os.environ)
