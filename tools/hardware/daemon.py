"""Steps with the real daemon beside the kubelet stand-in: a pod's life, idleness, the doctor."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import cpu_s, processes_of, resident_mib
from benchmarks.results import quantile
from gpuplugin.doctor.checks import CHECKS
from sim.kubelet import Kubelet, Phase, simple_pod
from tools.hardware.calls import read
from tools.hardware.step import (
    LAST_LINES,
    ROOT,
    Context,
    Found,
    ended_badly,
    judged,
    python_program,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sim.kubelet import KubeletEvent, NodeView
    from tools.hardware.report import Data

START_S, STOP_S, RELEASE_S = 20.0, 10.0, 10.0
READ_S = 25.0
"""Readings come every 15 s."""

HOLD_S = 10.0
"""So long the list must stay Healthy once pods have come and gone."""
SETTLE_S = 5.0
MOST_PODS = 256

_HTTP_PORT = re.compile(r"\bevent=http port=(\d+)")
_READING = re.compile(
    r'^gpuplugin_gpu_(?:temperature_celsius|power_watts|memory_used_bytes)\{[^}]*uuid="([^"]+)',
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Plugin:
    """The daemon, and the kubelet stand-in that it serves; `allocate_us` grows with each call."""

    kubelet: Kubelet
    process: subprocess.Popen[bytes]
    log: Path
    started_s: float
    allocate_us: list[float]

    @property
    def pids(self) -> list[int]:
        return processes_of(self.process.pid)

    def serving(self) -> NodeView:
        """The node once all devices are Healthy."""
        deadline_s = self.started_s + START_S
        while True:
            try:
                return self.kubelet.wait_until(_all_healthy, 1.0)
            except TimeoutError as error:
                ended = self.process.poll()
                if ended is None and time.monotonic() < deadline_s:
                    continue
                text = f"no list with Healthy devices after {START_S:g} s: {error}"
                text = text if ended is None else f"the plugin ended with {ended}"
                raise ended_badly(text, self.log.read_text()) from error

    def not_healthy(self, for_s: float) -> list[str]:
        """Devices that were not Healthy in the time to come; empty if all stay so."""
        try:
            node = self.kubelet.wait_until(lambda node: not _all_healthy(node), for_s)
        except TimeoutError:
            return []
        sick = [one for name in node.amounts for one in node.unhealthy(name)]
        return [f"{one} became Unhealthy" for one in sick] or ["the list has become empty"]

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a page of the plugin."""
        found = _HTTP_PORT.search(self.log.read_text())
        if found is None:
            raise ended_badly("the plugin logs no port for HTTP", self.log.read_text())
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=10)
        with closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def gpus_in_metrics(self) -> int:
        """The number of GPUs with readings, once there are any: the first come a period late."""
        while True:
            seen = set(_READING.findall(self.get("/metrics")[1]))
            if seen or time.monotonic() > self.started_s + READ_S:
                return len(seen)
            time.sleep(1)


def _all_healthy(node: NodeView) -> bool:
    amounts = node.amounts.values()
    return any(one.capacity for one in amounts) and all(
        one.capacity == one.allocatable for one in amounts
    )


@contextmanager
def running_plugin(context: Context, *, calls_file: Path | None = None) -> Iterator[Plugin]:
    """The daemon as in production, beside a kubelet stand-in; `calls_file` gets its NVML calls."""
    kubelet_dir, log = context.folder / "k", context.folder / "plugin.log"
    program = ["gpuplugin"] if calls_file is None else ["tools.hardware.calls", str(calls_file)]
    command = [
        *(sys.executable, "-m", *program, "run", "--backend", "nvml"),
        *("--kubelet-dir", str(kubelet_dir), "--listen-address", "127.0.0.1:0"),
        *("--device-list-strategy", "envvar", "--log-format", "text"),
    ]
    allocate_us: list[float] = []

    def heard(event: KubeletEvent) -> None:
        if event.call is not None and event.call.method == "Allocate":
            allocate_us.append(event.call.duration_s * 1e6)

    with Kubelet(kubelet_dir, listener=heard) as kubelet, log.open("wb") as stream:
        started_s = time.monotonic()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield Plugin(kubelet, process, log, started_s, allocate_us)
        finally:
            process.kill()
            process.wait()


def plugin(context: Context) -> Found:
    """The daemon registers, allocates, releases, stays Healthy, shows the GPUs, and stops."""
    problems: list[str] = []
    with running_plugin(context) as running:
        node = running.serving()
        start_s = time.monotonic() - running.started_s
        capacity = {name: amount.capacity for name, amount in node.amounts.items()}
        pods = sum(
            _fill_and_release(running.kubelet, name, count, problems)
            for name, count in capacity.items()
        )
        lists = sum(running.kubelet.view().list_updates.values())
        problems += running.not_healthy(HOLD_S)
        pages = {path: running.get(path) for path in ("/health", "/ready", "/metrics")}
        problems += [f"{path}: {code}" for path, (code, _) in pages.items() if code != 200]
        seen = running.gpus_in_metrics()
        if not seen:
            problems.append(f"/metrics has no reading of a GPU {READ_S:g} s after the start")
        more_lists = sum(running.kubelet.view().list_updates.values()) - lists
        running.process.terminate()
        try:
            if status := running.process.wait(STOP_S):
                problems.append(f"SIGTERM: it ended with {status}")
        except subprocess.TimeoutExpired:
            problems.append(f"SIGTERM: it still runs after {STOP_S:g} s")
        log = running.log.read_text().splitlines()
    times_us = sorted(running.allocate_us)
    median_us = quantile(times_us, 0.5) if times_us else None
    data: Data = {
        "start_to_list_s": round(start_s, 3),
        "capacity": capacity,
        "pods": pods,
        "allocate_p50_us": median_us,
        "allocate_p99_us": quantile(times_us, 0.99) if times_us else None,
        "gpus_in_metrics": seen,
        "lists_while_nothing_happened": more_lists,
        "warnings": [line for line in log if re.search(r"\b(WARNING|ERROR)\b", line)][:LAST_LINES],
    }
    devices = ", ".join(f"{count} x {name}" for name, count in capacity.items())
    text = f"{devices} after {start_s:.1f} s; {pods} pods allocated and released"
    return judged(f"{text}; Healthy for {HOLD_S:g} s", problems, data)


def _fill_and_release(kubelet: Kubelet, resource: str, count: int, problems: list[str]) -> int:
    """A pod for each device, then one that has to wait for another's end; the number of pods."""
    granted: list[str] = []
    names = [f"pod-{number}" for number in range(min(count, MOST_PODS))]
    for name in names:
        status = kubelet.run_pod(simple_pod(name, {resource: 1}))
        if status.phase is not Phase.RUNNING:
            problems.append(f"{resource}: {name} is {status.phase.value}: {status.message}")
            continue
        for grant in status.grants:
            granted += grant.device_ids
            uuids = {one.partition("::")[0] for one in grant.device_ids}
            visible = grant.envs.get("NVIDIA_VISIBLE_DEVICES", "")
            if set(visible.split(",")) != uuids:
                problems.append(f"{resource}: {name} got {grant.device_ids} and sees {visible!r}")
    if len(set(granted)) != len(granted):
        problems.append(f"{resource}: a device was given out twice")
    if count <= MOST_PODS:
        waiting = simple_pod("waiting", {resource: 1})
        if kubelet.run_pod(waiting).phase is not Phase.PENDING:
            problems.append(f"{resource}: one pod more than there are devices runs")
        kubelet.delete_pod(names.pop())
        try:
            kubelet.wait_until(
                lambda node: node.pods[waiting.key].status.phase is Phase.RUNNING, RELEASE_S
            )
        except TimeoutError:
            problems.append(f"{resource}: a pod's end does not release its device")
        names.append(waiting.name)
    for name in names:
        kubelet.delete_pod(name)
    return len(granted)


def idle(context: Context) -> Found:
    """What the daemon costs while nothing happens: CPU, wake-ups, memory, NVML calls."""
    file = context.folder / "calls"
    with running_plugin(context, calls_file=file) as running:
        running.serving()
        problems = running.not_healthy(SETTLE_S)
        began_ns, before_s = time.monotonic_ns(), cpu_s(running.pids)
        switches = _switches(running.pids)
        problems += running.not_healthy(context.idle_s)
        ended_ns = time.monotonic_ns()
        used_s = cpu_s(running.pids) - before_s
        switches = _switches(running.pids) - switches
        memory_mib = resident_mib(running.pids)
    made = read(file, began_ns, ended_ns)
    minutes = (ended_ns - began_ns) / 60e9
    rows: list[Data] = []
    for function in sorted({call.function for call in made}):
        of_it = [call for call in made if call.function == function]
        took_ms = sum(call.took_ns for call in of_it) / 1e6
        rows.append(
            {
                "function": function,
                "per_minute": round(len(of_it) / minutes, 1),
                "ms_per_minute": round(took_ms / minutes, 2),
            }
        )
    data: Data = {
        "measured_s": round((ended_ns - began_ns) / 1e9, 1),
        "cpu_percent": round(used_s / (minutes * 60) * 100, 3),
        "context_switches_per_minute": round(switches / minutes),
        "resident_mib": round(memory_mib, 1),
        "calls_per_minute": round(len(made) / minutes),
        "functions": rows,
    }
    if not made:
        problems.append("no NVML call was seen")
    text = f"CPU {data['cpu_percent']} % of a core, {data['calls_per_minute']} NVML calls a minute"
    return judged(f"{text}, {memory_mib:.0f} MiB", problems, data)


def _switches(pids: list[int]) -> int:
    """Voluntary context switches of all threads so far."""
    total = 0
    for pid in pids:
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            found = re.search(
                r"^voluntary_ctxt_switches:\s+(\d+)", status.read_text(), re.MULTILINE
            )
            total += int(found[1]) if found else 0
    return total


def doctor(context: Context) -> Found:
    """`gpuplugin doctor` beside the running daemon: driver and GPUs must be well."""
    with running_plugin(context) as running:
        running.serving()
        folder = running.kubelet.dir
        command = ("doctor", "--json", "--backend", "nvml", "--kubelet-dir", folder)
        done = python_program("gpuplugin", *command)
    try:
        diagnosis = json.loads(done.stdout)
    except ValueError as error:
        raise ended_badly(f"it ended with {done.returncode}", done.stderr) from error
    findings = {one["check"]: one for one in diagnosis["checks"]}
    problems = [
        f"{name}: {findings[name]['text']}"
        for name in _must_be_well(context)
        if findings[name]["severity"] == "fail"
    ]
    named = [
        f"{name} ({one['severity']})"
        for name, one in findings.items()
        if one["severity"] in ("warn", "fail")
    ]
    text = f"{len(findings)} checks; {', '.join(named) or 'nothing to report'}"
    return judged(text, problems, {"checks": diagnosis["checks"]})


def _must_be_well(context: Context) -> list[str]:
    """A simulated driver is neither on the bus nor in the kernel."""
    if context.simulated:
        return ["nvml-library", "driver-answers", "gpu-health"]
    about = ("gpuplugin.doctor.checks.driver", "gpuplugin.doctor.checks.gpus")
    return [check.name for check in CHECKS if check.judge.__module__ in about]
