"""The process that reads a configuration: how it is started, asked and ended.

What it does is in `child`, what it is asked for in `apart`. It loads what it needs before it is
asked, so whoever starts it early waits less; so this module loads next to nothing itself.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress


class Reader:
    """One process for one request, which is written to `requests` and answered at `answers`.

    It is a fork, which has loaded already what both need. Where there are threads, of which a fork
    would have the locks alone, it is a program of its own.

    Raises:
        OSError: there can be no more processes.
    """

    def __init__(self) -> None:
        begin = _forked if threading.active_count() == 1 else _started
        self._pid, self._requests, self._answers = begin()
        self._open = True

    @property
    def answers(self) -> int:
        """The descriptor that the answer is read from, up to its end."""
        return self._answers

    def ask(self, request: bytes) -> None:
        """Send the request, once."""
        requests, self._requests = self._requests, -1
        with (
            suppress(OSError),
            os.fdopen(requests, "wb") as stream,
        ):  # one that is gone is told later
            stream.write(request)

    def close(self) -> None:
        """End it, whether it has answered, was never asked, or hangs."""
        if not self._open:
            return
        self._open = False
        for descriptor in (self._requests, self._answers):
            if descriptor >= 0:
                os.close(descriptor)
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _forked() -> tuple[int, int, int]:
    """The process id of a fork, where to write its request, and where to read its answer."""
    answers, answer_end = os.pipe()
    request_end, requests = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Nothing of this process may be tidied up twice: the child leaves by the back door.
        try:
            os.close(answers)
            os.close(requests)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            from gpuplugin.config.child import answer

            answer(request_end, answer_end)
        finally:
            os._exit(0)
    os.close(request_end)
    os.close(answer_end)
    return pid, requests, answers


def _started() -> tuple[int, int, int]:
    """The same of a program of its own."""
    import subprocess  # a fork needs none of it

    # Nothing but where this process found its modules: not the working directory, as with -m.
    path = os.pathsep.join(one or os.getcwd() for one in sys.path)  # noqa: PTH109
    answers, answer_end = os.pipe()
    request_end, requests = os.pipe()
    try:
        child = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "gpuplugin.config.child",
                str(request_end),
                str(answer_end),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(request_end, answer_end),
            env={**os.environ, "PYTHONPATH": path},
        )
    finally:
        os.close(request_end)
        os.close(answer_end)
    child.returncode = 0  # waited for by its process id
    return child.pid, requests, answers
