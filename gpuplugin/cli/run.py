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

_NEEDED_BY_BOTH = ("json", "urllib.parse", "gpuplugin.cli.options", "gpuplugin.config.plans")
"""What the daemon and the child both load: it is loaded once, before the fork."""


def prepare(arguments: Sequence[str]) -> Callable[[], int]:
    """Load the daemon while the child reads the configuration.

    The returned function runs until a signal; it returns 0 then, 1 if the daemon could not start.
    It raises SystemExit with 2 for wrong arguments.
    """
    _import_asyncio()
    for name in _NEEDED_BY_BOTH:
        import_module(name)
    reading = Reading(__name__, arguments)
    from gpuplugin.cli.rundaemon import run

    return partial(run, arguments, reading)


def _import_asyncio() -> None:
    """Without TLS, which asyncio can do without and the daemon has no use for: 4 MiB of OpenSSL.

    Who talks to the API server has it without asyncio.
    """
    if "asyncio" not in sys.modules and "ssl" not in sys.modules:
        sys.modules["ssl"] = None  # type: ignore[assignment] # an import of it fails
        try:
            import_module("asyncio")
        finally:
            del sys.modules["ssl"]


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
