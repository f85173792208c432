"""The MPS share of a command: how long one takes alone, and two side by side."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sim.calibrate.children import ChildFailed
from sim.calibrate.edges import EdgeError
from sim.calibrate.processes import descendants, kill
from sim.gpu.calibration import MeasuredMps

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SERVER = "nvidia-cuda-mps-control"
LEAST_S = 2.0
"""A command that is done sooner is mostly the making of a context."""
_STARTS_S = 10.0
_QUIT_S = 5.0
_LOOK_S = 0.02


def mps_share(
    command: str, uuid: str, until_s: float, environment: Mapping[str, str]
) -> MeasuredMps:
    """Run the command once, then twice at once, below an MPS server of its own.

    The time that it takes to start counts as its own, so the share of a short command is too low.

    Raises:
        EdgeError: there is no MPS, or the command fails or is too short.
        ChildFailed: it is not done by `until_s` (of `time.monotonic`).
    """
    words = shlex.split(command)
    if not words:
        raise EdgeError("--mps-command is empty")
    before = descendants()
    try:
        with _server({**environment, "CUDA_VISIBLE_DEVICES": uuid}, until_s) as inside:
            (alone_s,) = _timed(words, 1, inside, until_s)
            if alone_s < LEAST_S:
                raise EdgeError(
                    f"--mps-command took {alone_s:.1f} s: give one that works for {LEAST_S:g} s at "
                    "least, or most of it is its start"
                )
            beside_s = max(_timed(words, 2, inside, until_s))
    finally:
        if left := descendants() - before:
            kill(left)
    share = min(1.0, max(0.0, beside_s / alone_s - 1))
    return MeasuredMps(
        share=round(share, 3),
        command=command,
        alone_s=round(alone_s, 3),
        beside_s=round(beside_s, 3),
    )


@contextmanager
def _server(environment: Mapping[str, str], until_s: float) -> Iterator[dict[str, str]]:
    """An MPS server in a folder of its own; the environment that leads to it."""
    program = shutil.which(SERVER, path=environment.get("PATH"))
    if program is None:
        raise EdgeError(f"{SERVER} was not found: it is part of the driver; see that it is in PATH")
    with tempfile.TemporaryDirectory(prefix="gp-mps") as folder:
        inside = {
            **environment,
            "CUDA_MPS_PIPE_DIRECTORY": folder,
            "CUDA_MPS_LOG_DIRECTORY": folder,
        }
        server = subprocess.Popen(
            [program, "-f"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=inside,
            start_new_session=True,
        )
        try:
            starts_s = min(until_s, time.monotonic() + _STARTS_S)
            while not (Path(folder) / "control").exists():
                if server.poll() is not None or time.monotonic() > starts_s:
                    raise EdgeError(f"{SERVER} did not start: see that no other one is on the GPU")
                time.sleep(_LOOK_S)
            yield inside
        finally:
            with suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(
                    [program],
                    input=b"quit\n",
                    env=inside,
                    capture_output=True,
                    check=False,
                    timeout=_QUIT_S,
                )
            server.kill()
            with suppress(subprocess.TimeoutExpired):
                server.wait(_QUIT_S)


def _timed(
    words: Sequence[str], count: int, environment: Mapping[str, str], until_s: float
) -> list[float]:
    """How long each of so many took that began together."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: _one(words, environment, until_s), range(count)))


def _one(words: Sequence[str], environment: Mapping[str, str], until_s: float) -> float:
    began_s = time.monotonic()
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise EdgeError(f"--mps-command cannot be run: {error}") from error
        try:
            code = process.wait(max(0.0, until_s - began_s))
        except subprocess.TimeoutExpired:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_QUIT_S)
            raise ChildFailed(
                "--mps-command was not done in time: it was killed. Give one that takes some 10 s"
            ) from None
        took_s = time.monotonic() - began_s
        if code:
            output.seek(0)
            last = output.read().decode(errors="replace").splitlines()[-3:]
            raise EdgeError("\n  ".join((f"--mps-command ended with {code}", *last)))
    return took_s
