"""What reads the configuration for `apart`, in a process that ends then.

The daemon waits for it, so it loads nothing else, and collects no garbage.
"""

from __future__ import annotations

import gc
import os
import pickle
import sys
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from gpuplugin.config.loaded import Loaded, Problem

Request: TypeAlias = "tuple[dict[str, str], dict[str, str], str | None]"
"""Flags and variables by name with their text, and the file."""


def answer(requests: int, answers: int) -> None:
    """Get ready, read a request from a pipe, and write what came of it to another, as pickles.

    That is the `Loaded`, the problems, or what went wrong. Nothing is answered if nobody asks.
    """
    gc.disable()
    read: Loaded | tuple[Problem, ...] | str
    try:
        import gpuplugin.config.load  # noqa: F401 - this takes longest, so it is done before

        with os.fdopen(requests, "rb") as stream:
            request: Request = pickle.load(stream)  # noqa: S301 - our parent's
        read = _read(request)
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, the daemon is told
        read = f"{type(error).__name__}: {error}"
    with os.fdopen(answers, "wb") as stream:
        pickle.dump(read, stream)


def _read(request: Request) -> Loaded | tuple[Problem, ...]:
    from gpuplugin.config.load import load_settings
    from gpuplugin.config.loaded import ConfigError
    from gpuplugin.config.options import OPTIONS

    given, environment, config_file = request
    flags = {option: given[option.flags[0]] for option in OPTIONS if option.flags[0] in given}
    try:
        return load_settings(flags, environment, config_file)
    except ConfigError as error:
        return error.problems


def main() -> None:
    """As a program: the numbers of the pipes to read the request from and to answer to."""
    answer(int(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)  # nothing is left to tidy up


if __name__ == "__main__":
    main()
