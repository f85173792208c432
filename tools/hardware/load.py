"""The step with a CUDA load, and what must be seen of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hal import ComputeMode, GpuState
from tools.hardware import cuda
from tools.hardware.step import ROOT, Context, Failed, Found, Skipped, judged, opened_backend

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hal import Backend, Gpu
    from tools.hardware.report import Data

LOAD_S, LOAD_MIB, ROOM_MIB = 8.0, 256, 1024
INTERVAL_S = 0.5
INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""PROC_PID_INIT_INO of the kernel: elsewhere the driver may report other process ids, or none."""


@dataclass(frozen=True, slots=True)
class Look:
    """One reading of the GPU with the load; memory in MiB."""

    utilization: float | None
    used_mib: float | None
    power_w: float | None
    temperature_c: float | None
    pids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Looks:
    before: Look
    during: tuple[Look, ...]
    after: Look


def load(_context: Context) -> Found:
    """Telemetry and processes before, under and after a small CUDA load."""
    with opened_backend() as backend:
        gpu = _for_load(backend)
        before = _look(backend, gpu)
        device = gpu.mig_devices[0].uuid if gpu.mig_devices else gpu.uuid
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.hardware.cuda", str(LOAD_S), str(LOAD_MIB)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": device},
        )  # fmt: skip
        output, during = process.stdout, []
        if output is None:
            raise AssertionError("it is a pipe")
        if (said := output.readline().strip()) == "ready":
            while process.poll() is None:
                during.append(_look(backend, gpu))
                threading.Event().wait(0.5)
        said = output.read().strip() or said
        if process.wait() == cuda.MISSING:
            raise Skipped(said)
        if process.returncode:
            raise Failed(f"CUDA: {said}")
        threading.Event().wait(1.0)
        after = _look(backend, gpu)
    own_pids = Path("/proc/self/ns/pid").stat().st_ino == INITIAL_PID_NAMESPACE
    looks = Looks(before, tuple(during), after)
    return compared(looks, process.pid, own_pids=own_pids, said=said)


def _look(backend: Backend, gpu: Gpu) -> Look:
    reading = backend.telemetry(gpu.uuid)
    used = reading.memory_used_bytes
    return Look(
        reading.utilization,
        None if used is None else used / 2**20,
        reading.power_w,
        reading.temperature_c,
        frozenset(process.pid for process in backend.processes(gpu.uuid)),
    )


def _for_load(backend: Backend) -> Gpu:
    """The first GPU that has room; raises `Skipped` with why each has none."""
    reasons = []
    for gpu in backend.gpus():
        reason = _why_not(backend, gpu)
        if reason is None:
            return gpu
        reasons.append(f"GPU {gpu.index} {reason}")
    raise Skipped("; ".join(reasons) or "there is no GPU")


def _why_not(backend: Backend, gpu: Gpu) -> str | None:
    if gpu.state is GpuState.LOST:
        return "is lost"
    if gpu.mig_enabled and not gpu.mig_devices:
        return "is in MIG mode without MIG devices"
    if gpu.compute_mode is ComputeMode.PROHIBITED:
        return "is in compute mode prohibited"
    if gpu.compute_mode is ComputeMode.EXCLUSIVE_PROCESS and backend.processes(gpu.uuid):
        return "is in exclusive mode and in use"
    free_bytes = backend.telemetry(gpu.uuid).memory_free_bytes
    if free_bytes is not None and free_bytes < ROOM_MIB << 20:
        return f"has less than {ROOM_MIB} MiB free"
    return None


def compared(looks: Looks, pid: int, *, own_pids: bool, said: str) -> Found:
    """Whether the load was seen; `own_pids`: the driver's process ids are those of this process."""
    before, during, after = looks.before, looks.during, looks.after
    problems = []
    if not during:
        problems.append("the load ended before the GPU was read")
    grown_mib = _most(look.used_mib for look in during)
    if grown_mib is not None and before.used_mib is not None:
        grown_mib -= before.used_mib
        if grown_mib < 0.9 * LOAD_MIB:
            problems.append(f"{LOAD_MIB} MiB were allocated, used memory grew by {grown_mib:.0f}")
    busy = _most(look.utilization for look in during)
    if busy == 0:
        problems.append("the utilisation stayed 0 under the load")
    listed = any(pid in look.pids for look in during)
    under_another = not listed and any(look.pids - before.pids for look in during)
    if own_pids and during and not listed:
        problems.append(f"process {pid} is not among the processes of the GPU")
    if pid in after.pids:
        problems.append(f"process {pid} has ended and is still listed")
    if None not in (before.used_mib, after.used_mib):
        kept_mib = (after.used_mib or 0) - (before.used_mib or 0)
        if kept_mib > LOAD_MIB / 2:
            problems.append(f"{kept_mib:.0f} MiB more are used after the load than before")
    process = "listed" if listed else "listed under another id" if under_another else "not listed"
    power = [look.power_w for look in (before, *during) if look.power_w is not None]
    watts = f", {power[0]:.0f} to {max(power):.0f} W" if power else ""
    data: Data = {
        "cuda": said,
        "allocated_mib": LOAD_MIB,
        "used_memory_grew_mib": grown_mib,
        "utilization": busy,
        "process": process,
        "own_pid_namespace": not own_pids,
        "looks": [{**asdict(look), "pids": len(look.pids)} for look in (before, *during, after)],
    }
    return judged(f"{said}; process {process}{watts}", problems, data)


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
