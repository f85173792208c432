"""Reads the configuration in a process of its own, which ends when it is read (`child`).

The library that checks it is a fifth of the daemon's memory and a third of its start, for something
that happens once. So a child reads while the daemon gets ready, and whatever a file does to its
reader, the daemon goes on.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from gpuplugin.config.loaded import ConfigError, Loaded, Problem
from gpuplugin.config.options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuplugin.config.option import Option

TIMEOUT_S = 60.0
"""A reader that takes longer hangs, as on a file of a network that is gone."""


class Reading:
    """A configuration that is being read since this was made; see `load.load_settings`."""

    def __init__(
        self,
        flags: Mapping[Option, str],
        environment: Mapping[str, str],
        config_file: str | None,
    ) -> None:
        given = {option.flags[0]: text for option, text in flags.items()}
        known = {name for option in OPTIONS for name in option.variables}
        variables = {name: environment[name] for name in known.intersection(environment)}
        # Nothing but where this process found its modules: not the working directory, as with -m.
        path = os.pathsep.join(one or os.getcwd() for one in sys.path)  # noqa: PTH109
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "gpuplugin.config.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "PYDANTIC_DISABLE_PLUGINS": "__all__"},
        )
        if self._child.stdin is not None:  # as it is, with a pipe
            with suppress(OSError):  # a child that is gone says why when it is waited for
                pickle.dump((given, variables, config_file), self._child.stdin)
                self._child.stdin.flush()

    def result(self) -> Loaded:
        """Wait for what was read.

        Raises:
            ConfigError: with all problems; also if the reader itself failed or hangs.
        """
        with self._child as child:
            try:
                answer, complaint = child.communicate(timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                raise _failed(f"no answer within {TIMEOUT_S:g} s") from None
        if child.returncode != 0:
            last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
            raise _failed(last or f"it ended with status {child.returncode}")
        read: Loaded | tuple[Problem, ...] = pickle.loads(answer)  # noqa: S301 - our own child's
        if isinstance(read, Loaded):
            return read
        raise ConfigError(read)


def _failed(why: str) -> ConfigError:
    return ConfigError([Problem("", "", f"the configuration could not be read: {why}")])
