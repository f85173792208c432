"""`gpuplugin`: from the command line to the command. The parser is in `parser`."""

from __future__ import annotations

import sys
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING

from gpuplugin.cli.imports import without_collector

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from gpuplugin.config.reader import Reader


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 wrong usage.

    A command that has more to say (`doctor`) tells so in its help.
    """
    given = sys.argv[1:] if arguments is None else arguments
    with _reader_for(given) as reader:
        return _run(given, reader)


def _reader_for(given: Sequence[str]) -> AbstractContextManager[Reader | None]:
    """The daemon waits for its configuration longest: its reader is the first thing to start."""
    if given[:1] != ["run"]:
        return nullcontext()
    from gpuplugin.config.reader import Reader

    return closing(Reader())


def _run(given: Sequence[str], reader: Reader | None) -> int:
    with without_collector():
        from argparse import Namespace
        from importlib import import_module

        from gpuplugin.cli.parser import build_parser

        parser = build_parser(*(given[:2] or [""]))
        parsed = parser.parse_args(given, Namespace(reader=reader))
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
