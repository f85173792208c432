"""The loaded configuration as plain data, and the child process that reads it for the daemon.

The daemon has no use for what reads a configuration (pydantic, YAML), and would keep its memory for
good. So a child reads it while the daemon gets ready, and whatever a file does to its reader, the
daemon goes on. This module is what both sides need, and loads next to nothing.
"""

from __future__ import annotations

import errno
import gc
import os
import pickle
import resource
import select
import signal
import stat
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NoReturn, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gpuplugin.config.settings import Settings

TIMEOUT_S = 60.0
"""A reader that takes longer hangs, for example on a network file system."""
MAX_FILE_BYTES = 1024 * 1024
"""What a ConfigMap may hold; a large configuration has some ten KiB."""
MAX_PROBLEMS = 20
"""More warnings or errors of one configuration are counted, not listed."""

CHANGE_REFUSED = "a change was refused"
"""What the status of the configuration says then: the last good one is in force, and all is well
otherwise."""

_NULL_DEVICE = os.makedev(1, 3)
_MEMORY_BYTES = 40 * 1024 * 1024
"""Enough for some 200 KiB of YAML; the daemon and its reader together stay below 128 MiB."""
_LEAST_MEMORY_BYTES = 16 * 1024 * 1024
_SPARED_BYTES = 8 * 1024 * 1024
_RESERVE_BYTES = 1024 * 1024
"""Without memory even a call fails: this is given back first."""
_PR_SET_PDEATHSIG = 1
_READ_BYTES = 1024 * 1024
_ANSWER = 3
"""The descriptor to which a child that is a program of its own answers."""
_SIGNALS = frozenset({signal.SIGINT})
"""Signals that the child ignores: the daemon ends it."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `where` it was written, the `key` path, and what to do."""

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.message) if part)


def listed(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """The problems, or the first of very many and the number of the others."""
    if len(problems) <= MAX_PROBLEMS + 1:
        return tuple(problems)
    more = Problem("", "", f"and {len(problems) - MAX_PROBLEMS} more like these")
    return (*problems[:MAX_PROBLEMS], more)


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has everything that is wrong with it.

    `warnings` are what would be told of it anyway, which is often the cause.
    """

    def __init__(self, problems: Sequence[Problem], warnings: Sequence[Problem] = ()) -> None:
        self.problems, self.warnings = listed(problems), listed(warnings)
        super().__init__(self.problems, self.warnings)

    def __str__(self) -> str:
        warnings = (f"warning: {one}" for one in self.warnings)
        return "\n".join((*map(str, self.problems), *warnings))


def read_file(path: Path) -> bytes:
    """The content of a configuration file, which is never waited for: a pipe is none.

    Raises:
        OSError: it cannot be read.
        ConfigError: it is no regular file (the null device counts as an empty one), or too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode) and status.st_rdev != _NULL_DEVICE:
            raise ConfigError([Problem(str(path), "", "cannot be read: it is not a regular file")])
        content = stream.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        text = f"is larger than {MAX_FILE_BYTES} bytes, the limit for a configuration"
        raise ConfigError([Problem(str(path), "", text)])
    return content


class Record(SimpleNamespace):
    """The values of a model as immutable attributes, readable where pydantic is not loaded."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("settings are immutable")


@dataclass(frozen=True)
class Loaded:
    """Settings, where the file layer came from, and warnings that the user should see.

    At run time `settings` is a `Record`. `effective` is the whole configuration in the file's
    spelling, defaults included, and `daemon` with what no file may say; `effective_yaml` is its
    text, so that the daemon needs no YAML library.
    """

    settings: Settings
    source: str
    file: str | None
    warnings: tuple[Problem, ...]
    blank: bool = False
    """True if the file has nothing in it, so that the default is used."""
    effective: Mapping[str, object] = field(default_factory=dict)
    effective_yaml: str = ""


_Answer: TypeAlias = Loaded | ConfigError | int
"""A child's answer: the loaded configuration, what is wrong with it, or an exit status."""


class Reading:
    """A configuration that a child process reads since this was made.

    The child calls `read` of `module` with the descriptor to answer to, and with `arguments` in
    `sys.argv`. It is a fork, which has loaded already what both need. Where there are threads, of
    which a fork would have the locks alone, it is a program of its own.

    Raises:
        OSError: there can be no more processes.
    """

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        begin = _forked if threading.active_count() == 1 else _started
        self._answers, end = os.pipe()
        try:
            self._pid = begin(module, arguments, end)
        except OSError:
            os.close(self._answers)
            raise
        finally:
            os.close(end)

    def result(self) -> Loaded:
        """Wait for what was read, once.

        Raises:
            ConfigError: with all problems; also if the reader itself failed or hangs.
            SystemExit: the arguments are wrong or ask for help, which the child has printed.
        """
        try:
            data = self._received()
        finally:
            os.close(self._answers)
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
        try:
            read: _Answer = pickle.loads(data)  # noqa: S301 - our child's
        except (EOFError, pickle.UnpicklingError):
            raise _failed("its reader ended without an answer") from None
        if isinstance(read, Loaded):
            return read
        if isinstance(read, int):
            raise SystemExit(read)
        raise read

    def _received(self) -> bytes:
        """All bytes that the child writes."""
        deadline_s = time.monotonic() + TIMEOUT_S
        parts: list[bytes] = []
        while not parts or parts[-1]:
            left_s = max(0.0, deadline_s - time.monotonic())
            if not select.select([self._answers], [], [], left_s)[0]:
                raise _failed(f"no answer within {TIMEOUT_S:g} s")
            parts.append(os.read(self._answers, _READ_BYTES))
        return b"".join(parts)


def _failed(why: str) -> ConfigError:
    return ConfigError([Problem("", "", f"the configuration could not be read: {why}")])


def _forked(module: str, arguments: Sequence[str], end: int) -> int:
    pid = os.fork()
    if pid == 0:
        # No cleanup of this process may run twice: the child always ends here.
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            sys.argv[1:] = arguments
            import_module(module).read(end)
        finally:
            os._exit(0)
    return pid


def _started(module: str, arguments: Sequence[str], end: int) -> int:
    # Modules come from where this process found them, never from the working directory.
    path = os.pathsep.join(one or os.getcwd() for one in sys.path)  # noqa: PTH109
    code = f"from {module} import read; read({_ANSWER})"
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", "-c", code, *arguments],
        {**os.environ, "PYTHONPATH": path},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, end, _ANSWER),
        ],
        setsigmask=_SIGNALS,
    )


def answer(answers: int, load: Callable[[], Loaded]) -> None:
    """In the child: load, and send the answer."""
    gc.disable()
    _die_with_parent()
    reserve = bytearray(_RESERVE_BYTES)
    read: _Answer
    try:
        read = load()
    except ConfigError as error:
        read = error
    except SystemExit as error:
        read = error.code if isinstance(error.code, int) else 1
        sys.stdout.flush()
    except MemoryError:
        del reserve
        _lift_memory_limit()
        read = _failed("its reader needs more memory than it may take; is it that large?")
    except Exception as error:  # noqa: BLE001 - whatever it is, the daemon reports it
        read = _failed(f"{type(error).__name__}: {error}")
    with suppress(BrokenPipeError), os.fdopen(answers, "wb") as stream:
        pickle.dump(read, stream)


def limit_memory(cgroup: Path) -> None:
    """In the child: what a file may make its reader take, so that it is refused, not killed.

    The container's limit counts for the daemon and its reader together, and a container that
    exceeds it is killed as a whole. To be called when everything is loaded.
    """
    budget = _MEMORY_BYTES
    with suppress(OSError, ValueError):  # no limit ("max"), or no cgroup of its own
        limit, now = (int((cgroup / f"memory.{one}").read_text()) for one in ("max", "current"))
        budget = min(budget, max(_LEAST_MEMORY_BYTES, limit - now - _SPARED_BYTES))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + budget
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _lift_memory_limit() -> None:
    """So that what was too large can be told."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _die_with_parent() -> None:
    """Nobody waits for a reader whose daemon was killed."""
    import ctypes

    with suppress(OSError, AttributeError):  # not on Linux: the daemon's deadline must do
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
