"""Edges of a GPU that is not there, for the processes of `sim.calibrate`.

Its state is in files of the folder `FAKE_GPU`: contexts (by process id), the level, and the levels
that were set. `FAKE_FAULT` is `DOING:WHO:HOW`: who (`driver`, `first` or `second`) does not answer
a request (`hang`), ends in it (`die`), refuses (`refuse`) or has a bug (`raise`).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import date
from pathlib import Path

from hal import TimeSliceLevel
from sim.calibrate.edges import (
    Answer,
    EdgeError,
    FreeBytes,
    Look,
    Open,
    Request,
    SetLevel,
    Stamp,
    Target,
)
from tests.unit.sim.calibrate.stamped import Truth, stamped

CUDA, DRIVER = "tests.component.gpuedges:FakeCuda", "tests.component.gpuedges:FakeDriver"
GIB, MIB = 1 << 30, 1 << 20
CONTEXT_BYTES = 480 * MIB
SLICES_US = {"default": 2000.0, "short": 1200.0, "medium": 5000.0, "long": 24_000.0}
LOW_US, FULL_US = 90.0, 260.0
MEETS_S = 20.0


def fault(request: Request, who: str) -> None:
    doing, _, rest = os.environ.get("FAKE_FAULT", "::").partition(":")
    name, _, how = rest.partition(":")
    if (doing, name) != (request.do, who):
        return
    match how:
        case "hang":
            threading.Event().wait()
        case "die":
            sys.stderr.write("CUDA is unhappy\n")
            sys.stderr.flush()
            os._exit(7)
        case "raise":
            raise RuntimeError("a bug")
        case _:
            raise EdgeError("cuDoIt: CUDA_ERROR_UNKNOWN (999)")


class FakeCuda:
    def __init__(self) -> None:
        self._folder = Path(os.environ["FAKE_GPU"])
        self._who = ""
        self._runs = 0

    def answer(self, request: Request) -> Answer:
        if isinstance(request, Open):
            self._who = ("first", "second")[len(self._contexts())]
            fault(request, self._who)
            (self._folder / f"context-{os.getpid()}").touch()
            sys.stdout.write("a library has something to say\n")
            return Answer()
        if isinstance(request, Stamp):
            self._meet()
        fault(request, self._who)
        match request:
            case FreeBytes():
                return Answer(free_bytes=16 * GIB - CONTEXT_BYTES * len(self._contexts()))
            case Stamp():
                level = (self._folder / "level").read_text()
                truth = Truth(SLICES_US[level], FULL_US if request.full else LOW_US)
                return Answer(stamps=stamped(truth)[0 if self._who == "first" else 1])
        raise EdgeError(f"no {request.do}")

    def _contexts(self) -> list[int]:
        pids = [int(path.name.partition("-")[2]) for path in self._folder.glob("context-*")]
        return [pid for pid in pids if Path("/proc", str(pid)).exists()]

    def _meet(self) -> None:
        """Both kernels are asked for before the first one is waited for."""
        self._runs += 1
        for pid in self._contexts():
            if pid == os.getpid():
                (self._folder / f"run-{pid}-{self._runs}").touch()
        ends_s = time.monotonic() + MEETS_S
        wanted = [self._folder / f"run-{pid}-{self._runs}" for pid in self._contexts()]
        while len(wanted) != 2 or not all(path.exists() for path in wanted):
            if time.monotonic() > ends_s:
                raise EdgeError("the other one was not asked")
            time.sleep(0.005)


class FakeDriver:
    def __init__(self) -> None:
        self._folder = Path(os.environ["FAKE_GPU"])

    def answer(self, request: Request) -> Answer:
        fault(request, "driver")
        match request:
            case Look():
                target = Target(
                    uuid="GPU-a",
                    index=0,
                    product="NVIDIA L4",
                    model="l4",
                    driver_version="580.105.08",
                    has_levels=True,
                    others=int(os.environ.get("FAKE_OTHERS", "0")),
                    today=date(2026, 11, 30),
                )
                return Answer(target=target)
            case SetLevel():
                name = TimeSliceLevel(request.level).name.lower()
                (self._folder / "level").write_text(name)
                with (self._folder / "levels").open("a") as stream:
                    stream.write(f"{name}\n")
                return Answer()
        raise EdgeError(f"no {request.do}")
