"""What a scrape costs: its time on a full node, and what it does to the latency of Allocate.

A simulated node (8 GPUs x 100 replicas, 110 pods at work) with the plugin runs in a process of its
own. Each scrape reads the GPUs anew, as one that comes after `--metrics-interval` does. From here
Allocate is called every 2 ms, in turns without and with a scrape every half second, so noise of the
machine hits both alike. A call that has to wait for the one before it, as where a scrape holds both
up, counts from when it was due. `python -m benchmarks.scrape` prints a table.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from benchmarks.calls import caller, one_by_one
from benchmarks.devices import allocate_request
from benchmarks.results import quantile
from gpuplugin.daemon.serving.sockets import KubeletDirs
from sim.kubeletsocket import ask_kubelet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PODS, GPUS, REPLICAS = 110, 8, 100
RESOURCE = "nvidia.com/gpu"
SCRAPE_EVERY_S, CALL_EVERY_S = 0.5, 0.002
METRICS_INTERVAL_S = 0.1
"""A reading that is younger would serve another scrape."""
SCRAPES = 40
ROUNDS = 6
START_TIMEOUT_S = 60.0
SCENARIO = {
    "name": "full",
    "gpus": [{"model": "h100-sxm5-80gb", "count": GPUS}],
    "pods": [
        {
            "name": "pod",
            "count": PODS,
            "workload": {"kind": "open-loop", "busy_ms": 2, "per_s": 1},
            "memory": {"start_gib": 1},
        }
    ],
    "config": {
        "version": "v1",
        "sharing": {"timeSlicing": {"resources": [{"name": RESOURCE, "replicas": REPLICAS}]}},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1000, help="calls in a turn (default 1000)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args()
    figures = measure(options.calls)
    for name, figure in figures.items():
        print(f"{name:32} {figure:12.3f}")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2), encoding="utf-8")


def measure(calls: int) -> dict[str, float]:
    """Milliseconds of scrapes, microseconds of Allocate."""
    with full_node() as (folder, port):
        scrapes = [read_anew(port) for _ in range(SCRAPES)]
        body_bytes = scrapes[0][1]
        alone_us: list[float] = []
        beside_us: list[float] = []
        beside = 0
        with caller("raw", plugin_socket(folder), "Allocate") as call:
            allocate = partial(call, an_allocation(folder))
            one_by_one(allocate, 200)
            for _ in range(ROUNDS):
                alone_us += paced(allocate, calls)
                with scraping(port) as done:
                    beside_us += paced(allocate, calls)
                    beside += len(done)
    times_ms = sorted(seconds * 1e3 for seconds, _ in scrapes)
    return {
        "scrape p50 ms": statistics.median(times_ms),
        "scrape max ms": times_ms[-1],
        "scrape KiB": body_bytes / 1024,
        "scrapes beside calls": beside,
        "Allocate p50 us, no scrapes": quantile(sorted(alone_us), 0.5),
        "Allocate p50 us, scrapes": quantile(sorted(beside_us), 0.5),
        "Allocate p99 us, no scrapes": quantile(sorted(alone_us), 0.99),
        "Allocate p99 us, scrapes": quantile(sorted(beside_us), 0.99),
        "ratio of p99": quantile(sorted(beside_us), 0.99) / quantile(sorted(alone_us), 0.99),
    }


@contextmanager
def full_node() -> Iterator[tuple[Path, int]]:
    """The node in a process of its own: the kubelet's folder, and the port of /metrics."""
    folder = Path(tempfile.mkdtemp(prefix="gp"))
    scenario = folder / "full.yaml"
    scenario.write_text(yaml.safe_dump(SCENARIO), encoding="utf-8")
    command = [sys.executable, "-m", "gpuplugin", "sim", "up", str(scenario)]
    command += ["--kubelet-dir", str(folder), "--listen-address", "127.0.0.1:0"]
    command += ["--log-level", "error", "--metrics-interval", f"{METRICS_INTERVAL_S}s"]
    node = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert node.stdout is not None  # noqa: S101 - for the type checker
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        announced = re.search(r"http://127\.0\.0\.1:(\d+)/", node.stdout.readline())
        if announced is None:
            raise SystemExit("the node did not come up")
        port = int(announced[1])
        while pods_seen(port) < PODS:
            if node.poll() is not None or time.monotonic() > deadline_s:
                raise SystemExit("the node did not come up with its pods")
            time.sleep(0.2)
        yield folder, port
    finally:
        node.terminate()
        node.communicate(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def pods_seen(port: int) -> int:
    try:
        lines = read_metrics(port).splitlines()
    except OSError:
        return 0
    return sum(line.startswith(b"gpuplugin_pod_memory_bytes{") for line in lines)


def read_metrics(port: int) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with closing(connection):
        connection.request("GET", "/metrics")
        return connection.getresponse().read()


def scrape(port: int) -> tuple[float, int]:
    started_s = time.perf_counter()
    body = read_metrics(port)
    return time.perf_counter() - started_s, len(body)


def read_anew(port: int) -> tuple[float, int]:
    time.sleep(2 * METRICS_INTERVAL_S)
    return scrape(port)


def paced(call: Callable[[], object], calls: int) -> list[float]:
    """Microseconds of calls that are due every `CALL_EVERY_S`, those that waited included."""
    found = []
    due_s = time.perf_counter()
    for _ in range(calls):
        due_s += CALL_EVERY_S
        if (left_s := due_s - time.perf_counter()) > 0:
            time.sleep(left_s)
            due_s = time.perf_counter()  # to wake up late is no latency
        call()
        found.append((time.perf_counter() - due_s) * 1e6)
    return found


@contextmanager
def scraping(port: int) -> Iterator[Sequence[float]]:
    """Scrape meanwhile, at once for the first time; the seconds of those that are done."""
    over = threading.Event()
    took_s: list[float] = []

    def scrape_on() -> None:
        took_s.append(scrape(port)[0])
        while not over.wait(SCRAPE_EVERY_S):
            took_s.append(scrape(port)[0])

    thread = threading.Thread(target=scrape_on)
    thread.start()
    try:
        yield took_s
    finally:
        over.set()
        thread.join()


def plugin_socket(folder: Path) -> Path:
    (path,) = KubeletDirs(folder).plugin_watcher.glob("gpuplugin-*.sock")
    return path


def an_allocation(folder: Path) -> bytes:
    node = ask_kubelet(folder, command="view")
    pods = node["pods"]
    if not isinstance(pods, list):
        raise SystemExit("the kubelet stand-in lists no pods")
    return allocate_request(pods[0]["grants"][0]["device_ids"])


if __name__ == "__main__":
    main()
