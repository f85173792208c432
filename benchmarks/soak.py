"""A long run of the real daemon under load: Allocate without end, faults and kubelet restarts.

The plugin is a process of its own on a simulated node of eight GPUs; the kubelet stand-in and the
caller are here. After each round the table shows what must not grow (memory, descriptors, threads)
and how long a fault took from the moment it was injected until the kubelet had the list.
`python -m benchmarks.soak` makes 100,000 calls in 20 rounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.calls import device_plugin_method
from benchmarks.devices import allocate_request
from benchmarks.machine import resident_mib
from benchmarks.servers import ENGINES
from gpuplugin.daemon.serving.sockets import KubeletDirs
from gpuplugin.rpc.client import CallFailed, Connection, ConnectionFailed
from sim.kubelet import Kubelet
from sim.node.control import control_socket, inject, status

if TYPE_CHECKING:
    from collections.abc import Iterator

RESOURCE = "nvidia.com/gpu"
METHOD = device_plugin_method("Allocate")
GPUS, REPLICAS = 8, 10
DEADLINE_S = 60.0
CALL_TIMEOUT_S = 10.0
XID = 79


@dataclass(frozen=True)
class Round:
    """What one round showed: calls, what failed of them, the process after it, times of a fault."""

    calls: int
    failed: int
    failed_elsewhere: int
    """Failures on GPUs other than the faulty one."""
    p50_us: float
    p99_us: float
    lists_per_fault: int
    fault_to_list_ms: float
    reset_to_list_ms: float
    kubelet_restarted: bool
    rss_mib: float
    descriptors: int
    threads: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000, help="in all (default 100000)")
    parser.add_argument("--rounds", type=int, default=20, help="default 20")
    parser.add_argument("--registration", choices=("watcher", "classic"), default="watcher")
    parser.add_argument("--engine", choices=ENGINES, default="fast")
    parser.add_argument("--json", metavar="FILE", help="write the rounds as JSON")
    options = parser.parse_args()
    print(
        f"{'round':>5} {'calls':>6} {'failed':>6} {'p50 us':>7} {'p99 us':>7} {'lists':>5} "
        f"{'fault ms':>8} {'back ms':>8} {'restart':>7} {'RSS MiB':>8} {'fds':>4} {'threads':>7}"
    )
    rounds = []
    for number, one in enumerate(
        soak(options.calls, options.rounds, options.registration, options.engine)
    ):
        rounds.append(one)
        print(
            f"{number:5} {one.calls:6} {one.failed:6} {one.p50_us:7.0f} {one.p99_us:7.0f} "
            f"{one.lists_per_fault:5} {one.fault_to_list_ms:8.1f} {one.reset_to_list_ms:8.1f} "
            f"{'yes' if one.kubelet_restarted else '':>7} {one.rss_mib:8.1f} {one.descriptors:4} "
            f"{one.threads:7}",
            flush=True,
        )
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(one) for one in rounds], indent=2))


def soak(calls: int, rounds: int, registration: str, engine: str) -> Iterator[Round]:
    folder = Path(tempfile.mkdtemp(prefix="gp"))
    log = (folder / "plugin.log").open("w")
    plugin = subprocess.Popen(
        [sys.executable, "-m", "gpuplugin", "run", "--backend", "sim", "--kubelet-dir", folder,
         "--registration", registration, "--listen-address", "127.0.0.1:0",
         "--health-quiet-period", "100ms", "--health-probe-interval", "500ms",
         "--rpc-engine", engine],
        stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        with Kubelet(folder) as kubelet:
            _wait(kubelet, GPUS * REPLICAS)
            for number in range(rounds):
                yield _round(kubelet, plugin.pid, registration, calls // rounds, number)
        plugin.send_signal(signal.SIGTERM)
        plugin.wait(30)
    finally:
        plugin.kill()
        plugin.wait()
        log.close()
        shutil.rmtree(folder)


def _round(kubelet: Kubelet, pid: int, registration: str, calls: int, number: int) -> Round:
    faulty = number % GPUS
    restart = number % 2 == 1
    caller = _Caller(kubelet, registration, calls)
    caller.start()
    lists_before = kubelet.view().list_updates[RESOURCE]
    fault_ms = _timed(kubelet, faulty, {"kind": "xid", "xid": XID}, (GPUS - 1) * REPLICAS)
    lists = kubelet.view().list_updates[RESOURCE] - lists_before
    if restart:
        kubelet.restart()
        _wait(kubelet, (GPUS - 1) * REPLICAS)
    back_ms = _timed(kubelet, faulty, {"kind": "recover"}, GPUS * REPLICAS)
    caller.join()
    return Round(
        calls=len(caller.times_us),
        failed=sum(caller.failed.values()),
        failed_elsewhere=sum(n for gpu, n in caller.failed.items() if gpu != faulty),
        p50_us=statistics.median(caller.times_us),
        p99_us=statistics.quantiles(caller.times_us, n=100)[98],
        lists_per_fault=lists,
        fault_to_list_ms=fault_ms,
        reset_to_list_ms=back_ms,
        kubelet_restarted=restart,
        rss_mib=resident_mib([pid]),
        descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        threads=len(list(Path(f"/proc/{pid}/task").iterdir())),
    )


class _Caller(threading.Thread):
    """Calls Allocate for the devices of all GPUs in turn, one call after the other."""

    def __init__(self, kubelet: Kubelet, registration: str, calls: int) -> None:
        super().__init__(name="caller", daemon=True)
        dirs = KubeletDirs(kubelet.dir)
        self._folder = dirs.device_plugins if registration == "classic" else dirs.plugin_watcher
        self._calls = calls
        self._ids = _healthy_ids(kubelet)
        self.times_us: list[float] = []
        self.failed: dict[int, int] = {}

    def run(self) -> None:
        uuids = list(dict.fromkeys(one.partition("::")[0] for one in self._ids))
        requests = [
            (uuids.index(one.partition("::")[0]), allocate_request([one]))
            for one in sorted(self._ids)
        ]
        connection = self._connect()
        for number in range(self._calls):
            gpu, request = requests[number % len(requests)]
            started_ns = time.perf_counter_ns()
            try:
                connection.call(METHOD, request)
            except CallFailed:
                # With classic registration the socket is renewed when the kubelet restarts.
                connection.close()
                connection = self._connect()
                try:
                    connection.call(METHOD, request)
                except CallFailed:
                    self.failed[gpu] = self.failed.get(gpu, 0) + 1
            self.times_us.append((time.perf_counter_ns() - started_ns) / 1000)
        connection.close()

    def _connect(self) -> Connection:
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            for path in sorted(self._folder.glob("gpuplugin-*.sock"), reverse=True):
                with suppress(ConnectionFailed):
                    return Connection(path, CALL_TIMEOUT_S)
            time.sleep(0.01)
        raise TimeoutError(f"the plugin serves no socket in {self._folder}")


def _healthy_ids(kubelet: Kubelet) -> list[str]:
    uuids = [gpu.uuid for gpu in status(control_socket(kubelet.dir))]
    return [f"{uuid}::{replica}" for uuid in uuids for replica in range(REPLICAS)]


def _timed(kubelet: Kubelet, gpu: int, what: dict[str, object], allocatable: int) -> float:
    """Milliseconds from a fault or recovery until the kubelet has the list with it."""
    started_ns = time.perf_counter_ns()
    inject(control_socket(kubelet.dir), str(gpu), what)
    _wait(kubelet, allocatable)
    return (time.perf_counter_ns() - started_ns) / 1e6


def _wait(kubelet: Kubelet, allocatable: int) -> None:
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == allocatable, DEADLINE_S)


if __name__ == "__main__":
    main()
