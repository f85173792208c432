"""Options of the daemon as command-line flags, from the one table in `gpuplugin.config.options`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gpuplugin.config.option import Kind, Option
from gpuplugin.config.options import (
    CONFIG_FILE_FLAG,
    CONFIG_FILE_VARIABLE,
    OPTIONS,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from gpuplugin.config.apart import Reading
    from gpuplugin.config.loaded import Loaded
    from gpuplugin.config.reader import Reader

_PREFIX = "option:"


def add_options(
    parser: argparse.ArgumentParser,
    sections: Sequence[str] | None = None,
    names: Sequence[str] = (),
) -> None:
    """Add `--config-file` and the options of the given sections and flags (default: all)."""
    parser.add_argument(
        CONFIG_FILE_FLAG,
        metavar="FILE",
        default=os.environ.get(CONFIG_FILE_VARIABLE),
        help=f"configuration in NVIDIA's format [${CONFIG_FILE_VARIABLE}]",
    )
    for option in OPTIONS:
        if sections is None or option.path[0] in sections or option.flags[0] in names:
            _add(parser, option)


def given_options(parsed: argparse.Namespace) -> dict[Option, str]:
    """The options that stood on the command line, with their text."""
    values = vars(parsed)
    return {
        option: values[_destination(option)]
        for option in OPTIONS
        if values.get(_destination(option)) is not None
    }


def load(parsed: argparse.Namespace, config_file: str | None = None) -> Loaded:
    """The configuration in force for a command; `config_file` is read in place of the user's.

    Raises:
        gpuplugin.config.load.ConfigError: with every problem.
    """
    from gpuplugin.config.load import load_settings

    return load_settings(given_options(parsed), os.environ, config_file or parsed.config_file)


def load_apart(
    parsed: argparse.Namespace, config_file: str | None = None, reader: Reader | None = None
) -> Reading:
    """The same, read in a process of its own: for the daemon, which has no use for the reader."""
    from gpuplugin.config.apart import Reading

    return Reading(given_options(parsed), os.environ, config_file or parsed.config_file, reader)


def _add(parser: argparse.ArgumentParser, option: Option) -> None:
    text = f"{option.help} [${option.variables[0]}]".replace("%", "%%")
    if option.kind is Kind.BOOL:
        parser.add_argument(
            *option.flags, dest=_destination(option), nargs="?", const="true", metavar="BOOL",
            help=text,
        )  # fmt: skip
        return
    metavar = "|".join(option.choices) or {
        Kind.LIST: "A,B",
        Kind.XIDS: "N,M",
        Kind.DURATION: "DURATION",
        Kind.STRING: "VALUE",
    }.get(option.kind, "VALUE")
    parser.add_argument(*option.flags, dest=_destination(option), metavar=metavar, help=text)


def _destination(option: Option) -> str:
    return _PREFIX + ".".join(option.path)
