"""The command line as a document: every command with its arguments, from the parser itself."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from gpuplugin.cli.parser import build_parser

if TYPE_CHECKING:
    from collections.abc import Iterator


def command_reference() -> str:
    """Sections of Markdown, one for each command that does something."""
    return "\n\n".join(_sections(build_parser()))


def _sections(parser: argparse.ArgumentParser, text: str = "") -> Iterator[str]:
    commands = [
        action
        for action in parser._actions  # noqa: SLF001 - argparse has no public way to list them
        if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001
    ]
    if parser.get_default("function") is not None:
        yield _section(parser, text)
    for action in commands:
        texts = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001
        for name, command in action.choices.items():
            yield from _sections(command, texts.get(name, ""))


def _section(parser: argparse.ArgumentParser, text: str) -> str:
    rows = [
        f"| `{_escaped(_spelling(action))}` | {_escaped(_help(action))} |"
        for action in parser._actions  # noqa: SLF001
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)  # noqa: SLF001
    ]
    table = ["| argument | meaning |", "|---|---|", *rows] if rows else []
    epilog = [parser.epilog, ""] if parser.epilog else []
    return "\n".join([f"## {parser.prog}", "", f"{_sentence(text)}", "", *epilog, *table]).rstrip()


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _spelling(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
    if isinstance(value, tuple):
        value = " ".join(value)
    if not action.option_strings:
        return value or action.dest
    takes_value = action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction)
    shown = value or (action.dest.upper() if takes_value else "")
    return f"{', '.join(action.option_strings)} {shown}".strip()


def _help(action: argparse.Action) -> str:
    text = (action.help or "").replace("%%", "%")
    return re.sub(r"\[(\$[^\]]+)\]", r"(`\1`)", text)


def _escaped(text: str) -> str:
    """As it stands in a cell of a table, code included."""
    return text.replace("|", "\\|")
