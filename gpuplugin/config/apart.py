"""Reads the configuration in a process of its own, which ends when it is read.

The child loads what reads it, and reads it, while the daemon gets ready. Whatever a file does to
its reader, the daemon goes on. The child's life is in `reader`.
"""

from __future__ import annotations

import os
import pickle
import select
import time
from contextlib import closing
from typing import TYPE_CHECKING

from gpuplugin.config.loaded import ConfigError, Loaded, Problem
from gpuplugin.config.options import OPTIONS
from gpuplugin.config.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuplugin.config.child import Request
    from gpuplugin.config.option import Option

TIMEOUT_S = 60.0
"""A reader that takes longer hangs, as on a file of a network that is gone."""

_READ_BYTES = 1024 * 1024


class Reading:
    """A configuration that is being read since this was made; see `load.load_settings`.

    `reader` is one that was started before, and not asked yet.
    """

    def __init__(
        self,
        flags: Mapping[Option, str],
        environment: Mapping[str, str],
        config_file: str | None,
        reader: Reader | None = None,
    ) -> None:
        given = {option.flags[0]: text for option, text in flags.items()}
        known = {name for option in OPTIONS for name in option.variables}
        variables = {name: environment[name] for name in known.intersection(environment)}
        request: Request = (given, variables, config_file)
        self._reader = reader or Reader()
        self._reader.ask(pickle.dumps(request))

    def result(self) -> Loaded:
        """Wait for what was read.

        Raises:
            ConfigError: with all problems; also if the reader itself failed or hangs.
        """
        with closing(self._reader):
            data = _received(self._reader.answers)
        try:
            read: Loaded | tuple[Problem, ...] | str = pickle.loads(data)  # noqa: S301 - our child's
        except (EOFError, pickle.UnpicklingError):
            raise _failed("its reader ended without an answer") from None
        if isinstance(read, Loaded):
            return read
        raise _failed(read) if isinstance(read, str) else ConfigError(read)


def _received(answers: int) -> bytes:
    """All that the child writes until it closes."""
    deadline_s = time.monotonic() + TIMEOUT_S
    parts: list[bytes] = []
    while True:
        left_s = max(0.0, deadline_s - time.monotonic())
        if not select.select([answers], [], [], left_s)[0]:
            raise _failed(f"no answer within {TIMEOUT_S:g} s")
        part = os.read(answers, _READ_BYTES)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _failed(why: str) -> ConfigError:
    return ConfigError([Problem("", "", f"the configuration could not be read: {why}")])
