"""`gpuplugin run`: the daemon. A child reads the configuration while the daemon is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.cli.imports import without_collector
from gpuplugin.cli.options import load_apart

if TYPE_CHECKING:
    import argparse


def run(parsed: argparse.Namespace) -> int:
    """Run until a signal; 0 then, 1 if the daemon could not start."""
    reading = load_apart(parsed)
    with without_collector():
        from gpuplugin.cli.rundaemon import run as run_daemon
    return run_daemon(parsed, reading)
