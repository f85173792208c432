"""`gpuplugin run`: the daemon. A child reads its command line and configuration meanwhile."""

from __future__ import annotations

import os
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.config.loaded import Reading, answer, limit_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpuplugin.config.loaded import Loaded

_LIBRARIES = {
    ("--backend", "GPUPLUGIN_BACKEND"): {"nvml": "hal.nvml.binding"},
    ("--rpc-engine", "GPUPLUGIN_RPC_ENGINE"): {
        "fast": "gpuplugin.rpc.fast",
        "grpcio": "gpuplugin.rpc.grpcio_engine",
    },
}
"""What is loaded when it is chosen by a flag or variable; the first is the default."""

_NEEDED_BY_BOTH = ("asyncio", "json", "tempfile", "urllib.parse")
"""What the daemon and the child both load: it is loaded once, before the fork."""


def prepare(arguments: Sequence[str]) -> Callable[[], int]:
    """Load the daemon while the child reads the configuration.

    The returned function runs until a signal; it returns 0 then, 1 if the daemon could not start.
    It raises SystemExit with 2 for wrong arguments.
    """
    for name in _NEEDED_BY_BOTH:
        import_module(name)
    reading = Reading(__name__, arguments)
    from gpuplugin.cli.rundaemon import run

    for (flag, variable), libraries in _LIBRARIES.items():
        chosen = _chosen(arguments, flag) or os.environ.get(variable) or next(iter(libraries))
        if chosen in libraries:
            import_module(libraries[chosen])
    return partial(run, arguments, reading)


def _chosen(arguments: Sequence[str], flag: str) -> str:
    """The value of a flag, unchecked; empty if it is not given."""
    for position, word in enumerate(arguments):
        if word == flag:
            return "".join(arguments[position + 1 : position + 2])
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return ""


def read(answers: int) -> None:
    """In the child: read the configuration that the arguments name."""
    # Plugins of pydantic are looked for in every installed distribution, and none is wanted.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    answer(answers, _load)


def _load() -> Loaded:
    from gpuplugin.cli.options import load
    from gpuplugin.cli.parser import build_parser

    parsed = build_parser("run").parse_args(["run", *sys.argv[1:]])
    import_module("gpuplugin.config.load")
    limit_memory(Path("/sys/fs/cgroup"))
    return load(parsed)
