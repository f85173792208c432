"""`gpuplugin run`: the daemon. A child reads the configuration while the daemon is imported."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from gpuplugin.cli.imports import without_collector
from gpuplugin.cli.options import given_options, load_apart
from gpuplugin.config.options import OPTIONS

if TYPE_CHECKING:
    import argparse

_LIBRARIES = {
    ("backend", "nvml"): "hal.nvml.binding",
    ("rpcEngine", "fast"): "gpuplugin.rpc.fast",
    ("rpcEngine", "grpcio"): "gpuplugin.rpc.grpcio_engine",
}
"""What is loaded when it is chosen; the first of a name is the default."""


def run(parsed: argparse.Namespace) -> int:
    """Run until a signal; 0 then, 1 if the daemon could not start."""
    reading = load_apart(parsed, reader=parsed.reader)
    with without_collector():
        from gpuplugin.cli.rundaemon import run as run_daemon

        for name in ("backend", "rpcEngine"):
            _load_chosen(parsed, name)
    return run_daemon(parsed, reading)


def _load_chosen(parsed: argparse.Namespace, name: str) -> None:
    """Load the library of an option that stands in no file, while the child still reads."""
    option = next(one for one in OPTIONS if one.path == ("daemon", name))
    variables = (os.environ[one] for one in option.variables if one in os.environ)
    default = next(value for key, value in _LIBRARIES if key == name)
    chosen = given_options(parsed).get(option) or next(variables, "") or default
    library = _LIBRARIES.get((name, chosen))
    if library is not None:
        import_module(library)
