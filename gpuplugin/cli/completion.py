"""`gpuplugin completion`: completion of commands in shells, by argcomplete."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.cli.text import fail

if TYPE_CHECKING:
    import argparse

_PROGRAM = "gpuplugin"
_MISSING = "completion needs argcomplete: pip install 'gpuplugin[completion]'"


def completion(parsed: argparse.Namespace) -> int:
    """Print what the shell has to read; 1 without the library."""
    try:
        from argcomplete.shell_integration import shellcode
    except ModuleNotFoundError:
        return fail(_MISSING)
    print(shellcode([_PROGRAM], shell=parsed.shell))
    return 0


def complete() -> None:
    """Answer the shell that asks what may come next, and end; nothing without the library."""
    try:
        from argcomplete import autocomplete
    except ModuleNotFoundError:
        return
    from gpuplugin.cli.parser import build_parser

    autocomplete(build_parser())
