"""What `gpuplugin sim fleet` costs: memory, CPU, requests, and a scrape of its metrics.

    python -m benchmarks.fleet --nodes 500 --pods 1000

The API server is the simulated one, in this process; the fleet is a process of its own.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import cpu_s, resident_mib
from sim.apiserver import NODES, PODS, ApiServer, Key, Selection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SETTLE_S = 5.0
START_TIMEOUT_S = 300.0
_LOADS = ("trainer", "notebook", "llm-decode")


@dataclass(frozen=True, slots=True)
class Measured:
    """`cpu_percent` is of one core, over `for_s`; requests are what the API server got then."""

    nodes: int
    pods: int
    start_s: float
    for_s: float
    resident_mib: float
    cpu_percent: float
    requests_per_s: float
    scrape_s: float
    scrape_mib: float
    resident_after_scrape_mib: float
    load: float


def measure(nodes: int, pods: int, scenario: str, for_s: float, *, working: bool) -> Measured:
    """Raises RuntimeError if the fleet does not come up."""
    with ApiServer() as server, _fleet(server, nodes, scenario) as (pid, port, start_s):
        for number in range(pods):
            _bind_pod(server, number, f"sim-{number % nodes}", working=working)
        _wait(lambda: _running(server) == pods, "all pods are Running")
        time.sleep(SETTLE_S)
        requests, began_s, used_s = len(server.requests), time.monotonic(), cpu_s([pid])
        time.sleep(for_s)
        took_s = time.monotonic() - began_s
        used_s, requests = cpu_s([pid]) - used_s, len(server.requests) - requests
        resident = resident_mib([pid])
        began_s = time.monotonic()
        body = _scrape(port)
        return Measured(
            nodes=nodes,
            pods=pods,
            start_s=round(start_s, 1),
            for_s=round(took_s, 1),
            resident_mib=round(resident, 1),
            cpu_percent=round(100 * used_s / took_s, 1),
            requests_per_s=round(requests / took_s, 1),
            scrape_s=round(time.monotonic() - began_s, 2),
            scrape_mib=round(len(body) / 2**20, 1),
            resident_after_scrape_mib=round(resident_mib([pid]), 1),
            load=round(os.getloadavg()[0], 1),
        )


@contextmanager
def _fleet(server: ApiServer, nodes: int, scenario: str) -> Iterator[tuple[int, int, float]]:
    """A fleet whose nodes are registered: its process, its port, and how long that took."""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
        kubeconfig = server.kubeconfig(Path(folder))
        command = [sys.executable, "-m", "gpuplugin", "sim", "fleet", "--nodes", str(nodes)]
        command += ["--scenario", scenario, "--listen-address", "127.0.0.1:0"]
        env = os.environ | {"KUBECONFIG": str(kubeconfig), "NO_PROXY": "127.0.0.1"}
        began_s = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
        assert process.stdout is not None  # noqa: S101 - for the type checker
        try:
            if "are kept" not in process.stdout.readline():
                raise RuntimeError("the fleet did not come up")
            took_s = time.monotonic() - began_s
            port = re.search(r"event=http port=(\d+)", (Path(folder) / "log").read_text())
            if port is None:
                raise RuntimeError("the fleet serves no metrics")
            yield process.pid, int(port[1]), took_s
        finally:
            process.terminate()
            process.communicate(timeout=START_TIMEOUT_S)
    left = server.store.select(Selection(NODES))[1]
    if left:
        raise RuntimeError(f"{len(left)} nodes are left")


def _bind_pod(server: ApiServer, number: int, node: str, *, working: bool) -> None:
    name = f"pod-{number}"
    loads = {"gpuplugin.dev/load": _LOADS[number % len(_LOADS)]} if working else {}
    container = {"name": "main", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    metadata = {"name": name, "namespace": "team", "annotations": loads}
    spec = {"containers": [container], "nodeName": node}
    server.store.create(Key(PODS, name, "team"), {"metadata": metadata, "spec": spec})


def _running(server: ApiServer) -> int:
    _, pods = server.store.select(Selection(PODS, fields={"status.phase": "Running"}))
    return len(pods)


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"not so after {START_TIMEOUT_S:g} s: {what}")
        pause.wait(0.5)


def _scrape(port: int) -> bytes:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", "/metrics")
        return connection.getresponse().read()


def main() -> None:
    parser = argparse.ArgumentParser(description="measure a fleet of simulated nodes")
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--pods", type=int, default=0, help="pods that run on them")
    parser.add_argument("--working", action="store_true", help="pods with loads, not idle ones")
    parser.add_argument("--scenario", default="default")
    parser.add_argument("--seconds", type=float, default=30.0)
    asked = parser.parse_args()
    found = measure(asked.nodes, asked.pods, asked.scenario, asked.seconds, working=asked.working)
    print(json.dumps(asdict(found), indent=2))


if __name__ == "__main__":
    main()
