"""Reads the configuration in a process of its own, which ends when it is read (`child`).

The library that checks it is a fifth of the daemon's memory and a third of its start, for something
that happens once. So a child reads while the daemon gets ready, and whatever a file does to its
reader, the daemon goes on.

The first child is a fork, which has loaded already what both need. Later there are threads, of
which a fork would have the locks alone: then the child is a program of its own.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from gpuplugin.config.child import answer
from gpuplugin.config.loaded import ConfigError, Loaded, Problem
from gpuplugin.config.options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuplugin.config.child import Request
    from gpuplugin.config.option import Option

TIMEOUT_S = 60.0
"""A reader that takes longer hangs, as on a file of a network that is gone."""

_READ_BYTES = 1024 * 1024


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
        request: Request = (given, variables, config_file)
        alone = threading.active_count() == 1
        self._pid, self._answers = _forked(request) if alone else _started(request)

    def result(self) -> Loaded:
        """Wait for what was read.

        Raises:
            ConfigError: with all problems; also if the reader itself failed or hangs.
        """
        try:
            data = self._received()
        finally:
            os.close(self._answers)
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)  # it has answered, has ended, or hangs
            os.waitpid(self._pid, 0)
        try:
            read: Loaded | tuple[Problem, ...] | str = pickle.loads(data)  # noqa: S301 - our child's
        except (EOFError, pickle.UnpicklingError):
            raise _failed("its reader ended without an answer") from None
        if isinstance(read, Loaded):
            return read
        raise _failed(read) if isinstance(read, str) else ConfigError(read)

    def _received(self) -> bytes:
        """All that the child writes until it closes."""
        deadline_s = time.monotonic() + TIMEOUT_S
        parts: list[bytes] = []
        while True:
            left_s = max(0.0, deadline_s - time.monotonic())
            if not select.select([self._answers], [], [], left_s)[0]:
                raise _failed(f"no answer within {TIMEOUT_S:g} s")
            part = os.read(self._answers, _READ_BYTES)
            if not part:
                return b"".join(parts)
            parts.append(part)


def _forked(request: Request) -> tuple[int, int]:
    """The process id of a fork that answers, and where to read its answer."""
    answers, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Nothing of this process may be tidied up twice: the child leaves by the back door.
        try:
            os.close(answers)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            answer(request, end)
        finally:
            os._exit(0)
    os.close(end)
    return pid, answers


def _started(request: Request) -> tuple[int, int]:
    """The same of a program of its own."""
    import subprocess  # a fork needs none of it

    # Nothing but where this process found its modules: not the working directory, as with -m.
    path = os.pathsep.join(one or os.getcwd() for one in sys.path)  # noqa: PTH109
    answers, end = os.pipe()
    requests, sender = os.pipe()
    try:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "gpuplugin.config.child", str(requests), str(end)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(requests, end),
            env={**os.environ, "PYTHONPATH": path, "PYDANTIC_DISABLE_PLUGINS": "__all__"},
        )
    finally:
        os.close(requests)
        os.close(end)
    with suppress(OSError), os.fdopen(sender, "wb") as stream:  # one that is gone is told of later
        pickle.dump(request, stream)
    child.returncode = 0  # waited for by its process id
    return child.pid, answers


def _failed(why: str) -> ConfigError:
    return ConfigError([Problem("", "", f"the configuration could not be read: {why}")])
