"""Steps that look at the node: driver and GPUs, the conformance suite, a recording, calls."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from benchmarks.results import quantile
from hal import GIB, GpuState, HalError, NotSupported
from hal.nvml.api import Code
from tools.hardware.calls import Called, watch
from tools.hardware.step import Context, Found, ended_badly, judged, opened_backend, python_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from hal import Backend, Gpu, Link
    from tools.hardware.report import Data

_T = TypeVar("_T")

CALLS_S, CONNECTIONS, ROUNDS = 20.0, 5, 20
_WAITS = frozenset({"nvmlEventSetWait", "nvmlEventSetWait_v2"})
"""Functions that take as long as they are told to."""

_SIMULATED_LIBRARY = b"GPUPLUGIN_SIM_NVML"


def driver(_context: Context) -> Found:
    """Which driver and GPUs there are, and which readings they give."""
    with opened_backend() as backend:
        version, library = backend.driver_version, loaded_library()
        simulated = library is not None and _SIMULATED_LIBRARY in library.read_bytes()
        gpus = backend.gpus()
        rows = [_described(backend, gpu) for gpu in gpus]
        problems = [f"GPU {row['index']}: {row['summary']}" for row in rows if not row["usable"]]
        links: list[Data] = []
        try:
            links = _links(gpus, backend.links())
        except HalError as error:
            problems.append(str(error))
    data: Data = {
        "version": version,
        "library": None if library is None else library.name,
        "simulated": simulated,
        "gpus": rows,
        "links": links,
    }
    if not gpus:
        problems.append("the driver lists no GPU")
    products = sorted({gpu.product for gpu in gpus})
    return judged(f"{version}, {len(gpus)} x {', '.join(products)}", problems, data)


def _links(gpus: Sequence[Gpu], links: Mapping[tuple[str, str], Link]) -> list[Data]:
    return [
        {"gpus": [one.index, other.index], "path": link.kind.value, "nvlinks": link.nvlinks}
        for one in gpus
        for other in gpus
        if one.index < other.index and (link := links.get((one.uuid, other.uuid))) is not None
    ]


def loaded_library() -> Path | None:
    """The file of NVML in this process."""
    found = re.search(r"(/\S*libnvidia-ml\S*)$", Path("/proc/self/maps").read_text(), re.MULTILINE)
    return Path(found[1]) if found else None


def _described(backend: Backend, gpu: Gpu) -> Data:
    row: Data = {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "product": gpu.product or "unknown product",
        "memory_bytes": gpu.memory_bytes,
        "compute_capability": gpu.compute_capability,
        "compute_mode": None if gpu.compute_mode is None else gpu.compute_mode.value,
        "numa_node": gpu.numa_node,
        "mig": [mig.profile for mig in gpu.mig_devices] if gpu.mig_enabled else None,
        "usable": False,
        "summary": "lost",
    }
    if gpu.state is GpuState.LOST:
        return row
    try:
        probe, reading = backend.probe(gpu.uuid), backend.telemetry(gpu.uuid)
        processes = _unless_not_supported(lambda: len(backend.processes(gpu.uuid)))
    except HalError as error:
        return {**row, "summary": str(error)}
    readings: Data = {**asdict(reading), "throttle_reasons": str(reading.throttle_reasons)}
    del readings["unknown"]
    unknown = [name for name, value in readings.items() if value is None]
    failures = [str(one) for one in (*gpu.unknown, *probe.unknown, *reading.unknown)]
    memory = f"{gpu.memory_bytes / GIB:.1f} GiB" if gpu.memory_bytes else "unknown memory"
    sound = f"{memory}; unknown: {', '.join(unknown) or 'nothing'}"
    action = probe.recovery_action.value
    return {
        **row,
        "usable": probe.clean and probe.in_fabric,
        "recovery_action": action,
        "fabric": None if probe.fabric is None else probe.fabric.value,
        "confidential_ready": probe.confidential_ready,
        "readings": readings,
        "failures": sorted(set(failures)),
        "processes": processes,
        "summary": sound if probe.clean and probe.in_fabric else f"not usable ({action}); {sound}",
    }


def _unless_not_supported(read: Callable[[], int]) -> int | None:
    try:
        return read()
    except NotSupported:
        return None


def conformance(context: Context) -> Found:
    """The suite that every backend passes; the one test that changes a setting is left out."""
    outcome = context.folder / "junit.xml"
    done = python_program(
        *("pytest", "tests/conformance", "-m", "hardware", "-q"),
        *("-k", "not time_slice_can_be_set", f"--junitxml={outcome}"),
    )
    if not outcome.exists():
        raise ended_badly(f"pytest ended with {done.returncode}", done.stdout + done.stderr)
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    problems, skipped = [], []
    for case in ET.parse(outcome).iter("testcase"):  # noqa: S314 - our own file
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        passed_over = case.find("skipped")
        if bad is not None:
            counts["failed"] += 1
            problems.append(f"{case.get('name')}: {bad.get('message', '')[:400]}")
        elif passed_over is not None:
            counts["skipped"] += 1
            skipped.append(f"{case.get('name')}: {passed_over.get('message', '')}")
        else:
            counts["passed"] += 1
    if not counts["passed"]:
        problems.append("no test ran")
    text = f"{counts['passed']} tests passed, {counts['skipped']} skipped"
    return judged(text, problems, {**counts, "skips": skipped})


def record(context: Context) -> Found:
    """`gpuplugin record` writes a scenario of the node, which the simulator accepts."""
    file = context.folder / "recorded.yaml"
    for command in (
        ("record", "--backend", "nvml", "--for", "5s", "--interval", "1s", "--scrub", "-o", file),
        ("sim", "scenario", "check", file),
    ):
        done = python_program("gpuplugin", *command)
        if done.returncode:
            raise ended_badly(f"{command[0]} ended with {done.returncode}", done.stderr)
    text = file.read_text()
    return Found(f"a scenario of {len(text.splitlines())} lines", {"scenario": text})


def calls(_context: Context) -> Found:
    """The cost of each NVML call, and of each call of the hardware layer, on idle GPUs."""
    made: list[Called] = []
    layer: list[Called] = []
    watch(made.append)
    ends_s = time.monotonic() + CALLS_S
    rounds = connections = 0
    while connections < CONNECTIONS and time.monotonic() < ends_s:
        began_ns = time.monotonic_ns()
        with opened_backend() as backend:
            layer.append(Called("open", began_ns, time.monotonic_ns() - began_ns, 0))
            connections += 1
            _timed(layer, "links", backend.links)
            for _ in range(ROUNDS):
                for gpu in _timed(layer, "gpus", backend.gpus):
                    if gpu.state is GpuState.OK:
                        _timed(layer, "probe", partial(backend.probe, gpu.uuid))
                        _timed(layer, "telemetry", partial(backend.telemetry, gpu.uuid))
                        _timed(layer, "processes", partial(backend.processes, gpu.uuid))
                backend.wait_events(0.0)
                rounds += 1
                if time.monotonic() > ends_s:
                    break
    functions = costs(made)
    data: Data = {
        "connections": connections,
        "rounds": rounds,
        "functions": functions,
        "hardware_layer": costs(layer),
    }
    text = f"{len(made)} calls of {len(functions)} functions in {rounds} rounds"
    return judged(text, [] if functions else ["no NVML call was seen"], data)


def _timed(layer: list[Called], name: str, call: Callable[[], _T]) -> _T:
    began_ns = time.monotonic_ns()
    found = call()
    layer.append(Called(name, began_ns, time.monotonic_ns() - began_ns, 0))
    return found


def costs(calls: Iterable[Called]) -> list[dict[str, object]]:
    """A row for each function: times in us, calls that failed by their code."""
    by_function: dict[str, list[Called]] = defaultdict(list)
    for call in calls:
        by_function[call.function].append(call)
    rows: list[dict[str, object]] = []
    for function, group in sorted(by_function.items()):
        times_us = sorted(call.took_ns / 1e3 for call in group)
        codes = Counter(_name_of(call.code) for call in group if call.code)
        rows.append(
            {
                "function": function,
                "calls": len(group),
                "p50_us": round(quantile(times_us, 0.5), 2),
                "p99_us": round(quantile(times_us, 0.99), 2),
                "max_us": round(times_us[-1], 2),
                "codes": dict(codes),
                "waits": function in _WAITS,
            }
        )
    return rows


def _name_of(code: int) -> str:
    return Code(code).name if code in set(Code) else str(code)
