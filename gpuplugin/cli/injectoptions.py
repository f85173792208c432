"""The options of `gpuplugin sim inject`. What they do is in `gpuplugin.cli.siminject`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_inject(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `commands`."""
    inject = commands.add_parser("inject", help="let a fault befall a simulated GPU or node")
    inject.set_defaults(module="siminject", function="inject", wrong_usage=inject.error)
    where = inject.add_mutually_exclusive_group(required=True)
    where.add_argument("--kubelet-dir", metavar="DIR", help="folder that the node serves")
    where.add_argument("--control", metavar="SOCKET", help="the node's control socket itself")
    inject.add_argument(
        "--gpu", metavar="INDEX|UUID|all", help="which GPU; left out with --driver and --watch"
    )
    what = inject.add_mutually_exclusive_group(required=True)
    what.add_argument("--xid", type=int, metavar="N", help="the driver reports Xid N")
    what.add_argument("--ecc", choices=("corrected", "uncorrectable"), help="an ECC event")
    what.add_argument(
        "--row-remap", choices=("pending", "failed"), help="a row remap that no event tells of"
    )
    what.add_argument("--lost", action="store_true", help="the GPU stops answering")
    what.add_argument(
        "--hang",
        nargs="?",
        type=float,
        const=math.inf,
        metavar="SECONDS",
        help="calls about the GPU do not return (default: until --recover)",
    )
    what.add_argument(
        "--thermal-shutdown", action="store_true", help="the GPU overheats and is lost"
    )
    what.add_argument("--unplug", action="store_true", help="the GPU is removed from the bus")
    what.add_argument("--plug", action="store_true", help="the removed GPU is back")
    what.add_argument(
        "--replace", action="store_true", help="another GPU of the model takes its place"
    )
    what.add_argument(
        "--repartition",
        metavar="PROFILE,...|none",
        help="MIG devices of these profiles; none turns MIG off",
    )
    what.add_argument("--recover", action="store_true", help="the GPU was reset and is as new")
    what.add_argument(
        "--driver", choices=("down", "up", "hang"), help="unload, load or hang the driver"
    )
    what.add_argument(
        "--watch", choices=("broken", "mended"), help="waiting for events fails, or works again"
    )
    inject.add_argument(
        "--mig", type=int, metavar="INDEX", help="with --xid: it names this MIG device of the GPU"
    )
    inject.add_argument(
        "--count", type=int, metavar="N", help="with --ecc: errors found at once (default 1)"
    )
    inject.add_argument(
        "--for",
        dest="for_s",
        type=float,
        metavar="SECONDS",
        help="with --driver hang and --watch broken: how long (default: until it is ended)",
    )
