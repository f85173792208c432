"""`gpuplugin`: from the command line to the command. The parser is in `parser`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from gpuplugin.cli.imports import without_collector

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 wrong usage.

    A command that has more to say (`doctor`) tells so in its help.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["run"]:
        from gpuplugin.cli.run import run

        return run(given[1:])
    return _run(given)


def _run(given: Sequence[str]) -> int:
    with without_collector():
        from importlib import import_module

        from gpuplugin.cli.parser import build_parser

        parsed = build_parser(*(given[:2] or [""])).parse_args(given)
        module = import_module(f"gpuplugin.cli.{parsed.module}")
    try:
        status: int = getattr(module, parsed.function)(parsed)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; there is nobody left to tell.
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        return 130
    return status
