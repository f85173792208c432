"""The demo's stage, and the record of what was seen on it: calls, lists, checks.

The kubelet stand-in is in this process, the plugin a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from prometheus_client.parser import text_string_to_metric_families

from gpuplugin.core.sharing import uuid_of
from gpuplugin.linesocket import ControlError
from sim.kubelet import Kubelet
from sim.node.control import control_socket, inject, status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sim.kubelet import CallRecord, KubeletEvent, NodeView


RECENT = 7
METHODS = ("GetPreferredAllocation", "Allocate", "NodePrepareResources", "NodeUnprepareResources")
"""Those whose latency is told."""


@dataclass(frozen=True, slots=True)
class Check:
    passed: bool
    text: str


class Facts:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started_s = time.monotonic()
        self._recent: deque[str] = deque(maxlen=RECENT)
        self._calls: list[CallRecord] = []
        self._lists: list[float] = []
        self._checks: list[Check] = []

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def record(self, fact: KubeletEvent) -> None:
        with self._lock:
            if fact.kind == "list":
                self._lists.append(time.monotonic())
            if fact.call is not None:
                self._calls.append(fact.call)
            self._recent.append(f"{self.elapsed_s:5.1f} s  {_line(fact)}")

    def check(self, passed: bool, text: str) -> None:
        with self._lock:
            self._checks.append(Check(passed, text))

    @property
    def recent(self) -> list[str]:
        with self._lock:
            return list(self._recent)

    @property
    def checks(self) -> list[Check]:
        with self._lock:
            return list(self._checks)

    @property
    def all_passed(self) -> bool:
        """True if there were checks and none failed."""
        checks = self.checks
        return bool(checks) and all(check.passed for check in checks)

    def lists_since(self, moment_s: float) -> list[float]:
        with self._lock:
            return [at_s for at_s in self._lists if at_s >= moment_s]

    def latency_ms(self, method: str) -> tuple[int, float, float] | None:
        """(calls, median, maximum) of a method as the kubelet saw it; None without calls."""
        with self._lock:
            durations = [call.duration_s * 1e3 for call in self._calls if call.method == method]
        if not durations:
            return None
        return len(durations), statistics.median(durations), max(durations)

    def summary(self) -> list[str]:
        lines = ["", "What was seen:"]
        lines += [f"  {'ok ' if check.passed else 'NO '} {check.text}" for check in self.checks]
        for method in METHODS:
            if latency := self.latency_ms(method):
                count, median, longest = latency
                lines.append(
                    f"{method}: {count} calls, median {median:.2f} ms, longest {longest:.2f} ms, "
                    "as the kubelet sees it"
                )
        return lines


def _line(fact: KubeletEvent) -> str:
    if fact.call is None:
        return f"{fact.kind:12} {fact.text}"
    outcome = "refused" if fact.call.error else "ok"
    return f"{fact.call.method:22} {fact.call.duration_s * 1e3:6.2f} ms  {outcome}"


def shares_of_plugins(node: NodeView) -> dict[str, list[Share]]:
    """The replicas of each GPU by UUID, as device plugins list them."""
    holders = {
        device_id: position
        for position, view in enumerate(node.pods.values())
        for grant in view.status.grants
        for device_id in grant.device_ids
    }
    found: dict[str, list[Share]] = {}
    for device_id, healthy in sorted(node.devices.get(RESOURCE, {}).items()):
        found.setdefault(uuid_of(device_id), []).append(Share(holders.get(device_id), healthy))
    return found


RESOURCE = "nvidia.com/gpu"
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0


class StageError(Exception):
    """Something the demo stands on does not work; the text has the plugin's last words."""


@dataclass(frozen=True, slots=True)
class Share:
    """A replica, or a share with DRA: the position of the pod that has it among the node's pods."""

    holder: int | None
    healthy: bool


class Stage:
    """The node with the device-plugin API; see `sim.cli.demo.claims` for DRA."""

    def __init__(self, facts: Facts) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="gpuplugin-demo-"))
        self.kubelet = self._kubelet(facts)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._port: int | None = None
        self._listening = threading.Event()
        self._gpu_indices: Mapping[str, int] = {}
        self._words: deque[str] = deque(maxlen=5)

    def __enter__(self) -> Self:
        self.kubelet.start()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gpuplugin", "run", "--backend", "sim"),
                *("--kubelet-dir", str(self.dir), "--listen-address", "127.0.0.1:0"),
                *("--health-quiet-period", "3s", "--health-probe-interval", "500ms"),
                *("--log-format", "json", *self._options()),
            ],
            env=os.environ | self._environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, name="plugin-log", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self.kubelet.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def available(self, node: NodeView) -> tuple[int, int]:
        """Replicas or shares that the scheduler may give out, taken or not, and all of them."""
        return node.allocatable(RESOURCE), node.capacity(RESOURCE)

    def shares(self, node: NodeView) -> Mapping[str, list[Share]]:
        """The replicas or shares of each GPU by UUID."""
        return shares_of_plugins(node)

    def _kubelet(self, facts: Facts) -> Kubelet:
        return Kubelet(self.dir, listener=facts.record)

    def _options(self) -> Sequence[str]:
        return ()

    def _environment(self) -> dict[str, str]:
        return {}

    @property
    def gpu_indices(self) -> Mapping[str, int]:
        """Index of every GPU by UUID, as the simulated node has them; empty until it runs."""
        if not self._gpu_indices:
            try:
                self._gpu_indices = {
                    gpu.uuid: gpu.index for gpu in status(control_socket(self.dir))
                }
            except ControlError:
                return {}
        return self._gpu_indices

    def inject(self, gpu: int, what: Mapping[str, object]) -> None:
        inject(control_socket(self.dir), str(gpu), what)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of a metric that have these labels, from /metrics."""
        if not self._listening.wait(START_TIMEOUT_S):
            raise StageError(f"the plugin does not listen: {' '.join(self._words)}")
        url = f"http://127.0.0.1:{self._port}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def stop_plugin(self) -> int:
        if self._process is None:
            raise StageError("the plugin was not started")
        self._process.terminate()
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise StageError(f"the plugin did not stop within {STOP_TIMEOUT_S:g} s") from error

    def plugin_words(self) -> str:
        return " | ".join(self._words)

    def _read(self) -> None:
        if self._process is None or self._process.stderr is None:
            return
        for line in self._process.stderr:
            try:
                fact = json.loads(line)
            except ValueError:
                self._words.append(line.rstrip())
                continue
            self._words.append(str(fact["message"]))
            if fact["event"] == "http":
                self._port = int(fact["port"])
                self._listening.set()
