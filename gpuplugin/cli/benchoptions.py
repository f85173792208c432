"""The options of `gpuplugin bench`. What it does is in `gpuplugin.cli.bench`."""

from __future__ import annotations

import argparse

SUITES = ("allocate", "prefer", "listing", "life", "faults", "simulator")
"""As in `benchmarks.suites`, which is not loaded for a line of help."""


def add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `commands`."""
    bench = commands.add_parser(
        "bench",
        help="measure the plugin, and others beside it",
        description="Measure device plugins and the simulator, each against a floor of the same "
        "run. The table goes to standard output.",
        epilog="exit status: 0 measured, 1 could not measure, missed a target with --strict, or "
        "became worse with --compare, 2 wrong usage",
    )
    bench.set_defaults(module="bench", function="bench", wrong_usage=bench.error)
    bench.add_argument(
        "suites", nargs="*", metavar="SUITE", help=f"{', '.join(SUITES)} (default: all)"
    )
    bench.add_argument("--quick", action="store_true", help="less of everything: a minute in all")
    bench.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="measure this device plugin too; {kubelet_dir} and {config} (a file in NVIDIA's "
        "format) are filled in; may be repeated",
    )
    bench.add_argument(
        "--private-kubelet-dir",
        action="append",
        default=[],
        metavar="NAME",
        help="of a --plugin whose folder is always /var/lib/kubelet: give it a private mount "
        "there (needs root); may be repeated",
    )
    bench.add_argument(
        "--engine", action="append", metavar="ENGINE", help="RPC engine (default: every one)"
    )
    bench.add_argument(
        "--client", choices=("raw", "grpcio"), default="raw", help="who calls (default raw)"
    )
    bench.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    bench.add_argument("--plot", metavar="FILE", help="write a picture, as SVG")
    bench.add_argument(
        "--profile", metavar="FILE", help="only see where an Allocate call spends its time, as SVG"
    )
    bench.add_argument(
        "--all", action="store_true", help="every size of request, not the worst alone"
    )
    bench.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of orders and resampling (default 1)"
    )
    bench.add_argument("--calls", type=_positive, metavar="N", help=argparse.SUPPRESS)
    bench.add_argument("--strict", action="store_true", help="fail if a target is missed")
    bench.add_argument(
        "--compare",
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        help="measure nothing, compare two files of --json",
    )
    bench.add_argument(
        "--threshold",
        type=float,
        default=1.3,
        metavar="X",
        help="with --compare: worse by this factor is worse (default 1.3)",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, found {text!r}")
    return int(text)
