"""`gpuplugin`: from the command line to the command. The parser is in `parser`."""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 wrong usage.

    The help of a command with other statuses (`doctor`) lists them.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["run"]:
        _on_early_signals()
        with _without_collector():
            from gpuplugin.cli.run import prepare

            run = prepare(given[1:])
        return run()
    return _run(given)


def _on_early_signals() -> None:
    """Until the daemon's loop takes signals: SIGTERM is a clean end, too, and SIGHUP is no end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _run(given: Sequence[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:
        from gpuplugin.cli.completion import complete

        complete()
    try:
        return _command(given)
    except BrokenPipeError:
        # The reader of the output has closed it, as `head` does.
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        return 130


def _command(given: Sequence[str]) -> int:
    with _without_collector():
        from importlib import import_module

        from gpuplugin.cli.parser import build_parser, module_of
        from gpuplugin.cli.text import SimulatorMissing, fail, needs_simulator

        try:
            parsed = build_parser(*(given[:2] or [""])).parse_args(given)
            with needs_simulator(f"gpuplugin {given[0]}"):
                module = import_module(module_of(parsed))
        except SimulatorMissing as error:
            return fail(error)
    status: int = getattr(module, parsed.function)(parsed)
    return status


@contextmanager
def _without_collector() -> Iterator[None]:
    """Import without the garbage collector, which then never walks over what was made here."""
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()
