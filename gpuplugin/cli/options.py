"""Options of the daemon as command-line flags, made from the models in `gpuplugin.config`.

What makes them is loaded only for a command that has such options.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from gpuplugin.config.loaded import Loaded
    from gpuplugin.config.options import Option

_PREFIX = "option:"
_TITLES = {
    "flags": "how devices reach containers",
    "imex": "IMEX channels",
    "health": "health of GPUs",
    "gpus": "which GPUs",
    "daemon": "this process",
}


def add_options(
    parser: argparse.ArgumentParser,
    sections: Sequence[str] | None = None,
    names: Sequence[str] = (),
) -> None:
    """Add `--config-file` and the options of the given sections and flags (default: all)."""
    from gpuplugin.config.options import CONFIG_FILE_FLAG, CONFIG_FILE_VARIABLE, OPTIONS

    parser.add_argument(
        CONFIG_FILE_FLAG,
        metavar="FILE",
        default=os.environ.get(CONFIG_FILE_VARIABLE),
        help=f"configuration in NVIDIA's format [${CONFIG_FILE_VARIABLE}]",
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in OPTIONS:
        section = option.path[0]
        if sections is None or section in sections or option.flags[0] in names:
            if section not in groups:
                groups[section] = parser.add_argument_group(_TITLES[section])
            _add(groups[section], option)


def given_options(parsed: argparse.Namespace) -> dict[Option, str]:
    """The options that stood on the command line, with their text.

    A list that was given several times has all that was given, as with NVIDIA's plugin.
    """
    from gpuplugin.config.options import OPTIONS

    values = vars(parsed)
    return {
        option: ",".join(given) if isinstance(given, list) else given
        for option in OPTIONS
        if (given := values.get(_destination(option))) is not None
    }


def load(parsed: argparse.Namespace) -> Loaded:
    """The configuration in force for a command.

    Raises:
        gpuplugin.config.loaded.ConfigError: with every problem.
    """
    from gpuplugin.config.load import load_settings

    return load_settings(given_options(parsed), os.environ, parsed.config_file)


def _add(parser: argparse._ArgumentGroup, option: Option) -> None:
    from gpuplugin.config.options import Kind

    default = f" (default {option.default})" if option.default else ""
    text = f"{option.help}{default} [${option.variables[0]}]".replace("%", "%%")
    if option.kind is Kind.BOOL:
        parser.add_argument(
            *option.flags, dest=_destination(option), nargs="?", const="true",
            metavar=option.kind.value, help=text,
        )  # fmt: skip
        return
    metavar = "|".join(option.choices) or option.kind.value
    is_list = option.kind in (Kind.LIST, Kind.NUMBERS, Kind.XIDS)
    parser.add_argument(
        *option.flags, dest=_destination(option), action="append" if is_list else "store",
        metavar=metavar, help=text,
    )  # fmt: skip


def _destination(option: Option) -> str:
    return _PREFIX + ".".join(option.path)
