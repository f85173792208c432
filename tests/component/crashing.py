"""`gpuplugin run` that kills itself before a step of its work on a claim; for tests.

    python -m tests.component.crashing FOLDER run ...

A step is a file below FOLDER that is opened to be written, renamed or removed, or a folder that is
synced, in a thread of a call. FOLDER/crash has the number of the step; without it all goes on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from gpuplugin.cli.main import main
from gpuplugin.daemon.dra.claimstore import LOCK

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_DIRECTORY
_CALLS = "rpc"
"""How the names of threads begin in which engines call handlers."""


def arm(folder: Path) -> None:
    """Kill this process before its step."""
    steps = {"os.rename", "os.remove"}
    left: list[int] = []

    def before(event: str, arguments: tuple[object, ...]) -> None:
        if event != "open" and event not in steps:
            return
        path = str(arguments[0])
        if not path.startswith(str(folder)) or path.endswith(("crash", LOCK)):
            return
        if event == "open" and not int(str(arguments[2])) & _WRITES:
            return
        if not threading.current_thread().name.startswith(_CALLS):
            return
        if not left:
            try:
                left.append(int((folder / "crash").read_text()))
            except OSError:
                return
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(before)


if __name__ == "__main__":
    arm(Path(sys.argv.pop(1)))
    sys.exit(main())
