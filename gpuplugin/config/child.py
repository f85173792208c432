"""The process that reads the configuration for `apart`: a request on standard input, and out.

The daemon waits for it, so it loads nothing else, and collects no garbage.
"""

from __future__ import annotations

import gc
import os
import pickle
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuplugin.config.loaded import Loaded, Problem


def main() -> None:
    """Read a request; write the `Loaded`, or the problems, as they are pickled."""
    gc.disable()
    from gpuplugin.config.load import load_settings
    from gpuplugin.config.loaded import ConfigError
    from gpuplugin.config.options import OPTIONS

    given, environment, config_file = pickle.load(sys.stdin.buffer)  # noqa: S301 - our parent's
    flags = {option: given[option.flags[0]] for option in OPTIONS if option.flags[0] in given}
    try:
        read: Loaded | tuple[Problem, ...] = load_settings(flags, environment, config_file)
    except ConfigError as error:
        read = error.problems
    sys.stdout.buffer.write(pickle.dumps(read))
    sys.stdout.flush()
    os._exit(0)  # nothing is left to tidy up


if __name__ == "__main__":
    main()
