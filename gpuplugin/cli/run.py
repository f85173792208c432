"""`gpuplugin run`: the daemon. A child reads its command line and configuration meanwhile."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from gpuplugin.cli.imports import without_collector
from gpuplugin.config.loaded import Reading, answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuplugin.config.loaded import Loaded

_LIBRARIES = {
    ("--backend", "GPUPLUGIN_BACKEND"): {"nvml": "hal.nvml.binding"},
    ("--rpc-engine", "GPUPLUGIN_RPC_ENGINE"): {
        "fast": "gpuplugin.rpc.fast",
        "grpcio": "gpuplugin.rpc.grpcio_engine",
    },
}
"""What is loaded when it is chosen by a flag or variable; the first is the default."""

_NEEDED_BY_BOTH = ("json", "logging", "socket", "tempfile", "urllib.parse")
"""What the daemon and the child would each load: it is loaded once, before they part."""


def run(arguments: Sequence[str]) -> int:
    """Run until a signal; 0 then, 1 if the daemon could not start, 2 for wrong arguments."""
    with without_collector():
        for name in _NEEDED_BY_BOTH:
            import_module(name)
        reading = Reading(__name__, arguments)
        from gpuplugin.cli.rundaemon import run as run_daemon

        for (flag, variable), libraries in _LIBRARIES.items():
            chosen = _chosen(arguments, flag) or os.environ.get(variable) or next(iter(libraries))
            if chosen in libraries:
                import_module(libraries[chosen])
    return run_daemon(arguments, reading)


def _chosen(arguments: Sequence[str], flag: str) -> str:
    """What an argument says, unchecked; empty if it says nothing."""
    for position, word in enumerate(arguments):
        if word == flag:
            return "".join(arguments[position + 1 : position + 2])
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return ""


def read(answers: int) -> None:
    """In the child: read the configuration that the arguments ask for."""
    # pydantic-settings imports asyncio for programs that it runs itself. There are none here, and
    # it is a fifth of what the child would load.
    sys.modules.setdefault("asyncio", ModuleType("asyncio"))
    answer(answers, _load)


def _load() -> Loaded:
    from gpuplugin.cli.options import load
    from gpuplugin.cli.parser import build_parser

    return load(build_parser("run").parse_args(["run", *sys.argv[1:]]))
