"""Starts the processes that hold the edges, asks them, and waits no longer than it may."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Self

from pydantic import ValidationError

from sim.calibrate.edges import Answer, EdgeError
from sim.calibrate.processes import descendants, kill

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from sim.calibrate.edges import Request

_END_S = 2.0
"""A process that holds a context needs some tenths of a second to give it back."""
_LAST_LINES = 5


class ChildFailed(Exception):
    """A process did not answer in time, or ended; the text says which, and when."""


@dataclass(slots=True)
class Child:
    """One process; a request is asked, and its answer taken later, so that two work at once."""

    name: str
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    _unread: bytes = b""

    def ask(self, request: Request) -> None:
        """Raises `ChildFailed` if it has ended."""
        stream = self.process.stdin
        try:
            if stream is not None:
                stream.write(request.model_dump_json().encode() + b"\n")
                stream.flush()
        except OSError:
            raise self._ended() from None

    def answer(self, until_s: float, doing: str) -> Answer:
        """The answer to what was asked, or `EdgeError`; raises `ChildFailed` at that time."""
        output = self.process.stdout
        if output is None:
            raise AssertionError("it is a pipe")
        while b"\n" not in self._unread:
            left_s = until_s - time.monotonic()
            if left_s <= 0 or not select.select([output], [], [], left_s)[0]:
                raise ChildFailed(f"{self.name} did not come back from {doing}: it was killed")
            read = os.read(output.fileno(), 1 << 16)
            if not read:
                raise self._ended()
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            answer = Answer.model_validate_json(line)
        except ValidationError as error:
            raise ChildFailed(f"{self.name} answered {doing} with {line[:80]!r}") from error
        if answer.error is not None:
            raise EdgeError(answer.error)
        return answer

    def close_input(self) -> None:
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()

    def _ended(self) -> ChildFailed:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        self.errors.seek(0)
        last = self.errors.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
        how = f"{self.name} ended with {self.process.returncode}"
        return ChildFailed("\n  ".join((how, *last)))


@dataclass(slots=True)
class Children:
    """All processes of a measurement: when it is left, none is there any more.

    One that even a kill does not end (it hangs in the kernel) is named in `stuck`, and nobody waits
    for it.
    """

    stuck: set[int] = field(default_factory=set)
    _children: list[Child] = field(default_factory=list)
    _before: set[int] = field(default_factory=set)

    def __enter__(self) -> Self:
        self._before = descendants()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end(*self._children)
        if left := descendants() - self._before:
            self.stuck |= kill(left)

    def start(self, name: str, place: str, environment: Mapping[str, str]) -> Child:
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        process = subprocess.Popen(
            [sys.executable, "-m", "sim.calibrate.child", place, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
        child = Child(name, process, errors)
        self._children.append(child)
        return child

    def end(self, *children: Child) -> None:
        """Let them give back what they have; kill those that do not end by themselves."""
        for child in children:
            child.close_input()
        until_s = time.monotonic() + _END_S
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, until_s - time.monotonic()))
        late = [child for child in children if child.process.poll() is None]
        for child in late:
            child.process.kill()
        for child in late:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(_END_S)
        for child in children:
            child.errors.close()
            if child.process.stdout is not None:
                child.process.stdout.close()
            self._children.remove(child)
