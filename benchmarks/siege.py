"""A rehearsal: attacks on the plugin beside a kubelet stand-in that allocates 20 times a second.

The plugin is a process of its own on a simulated node of eight GPUs, with a limit of memory; each
attack is another process. `python -m benchmarks.siege` takes about four minutes, and ends with 1 if
the plugin did not hold the limits below. Attacks on GPUs take the last one; pods get the others.
"""

from __future__ import annotations

import argparse
import http
import http.client
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.attacks import ALLOCATE, ATTACKS, GOOD, SECOND_PLUGIN, TIMEOUT_S, WATCH, Target
from benchmarks.devices import allocate_request
from benchmarks.machine import resident_mib
from benchmarks.servers import ENGINES
from gpuplugin.rpc import RpcCode
from gpuplugin.rpc.client import CallFailed, Connection, ConnectionFailed
from sim.kubelet import Kubelet
from sim.node.control import control_socket, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.context import SpawnProcess

RESTARTS = "kubelet: restarts"
CUTTING = (SECOND_PLUGIN, RESTARTS)
"""After these a kubelet connects anew: the call that waits for that counts as slow, not failed."""
ROUNDS = (*ATTACKS, RESTARTS)
RESOURCE = "nvidia.com/gpu"
GPUS, REPLICAS = 8, 10
ALLOCATE_EVERY_S = 0.05
HEALTH_EVERY_S = 0.25
RESTART_EVERY_S = 0.5
SAMPLE_S = 0.02
DEADLINE_S = 30.0
ADDRESS_SPACE_BYTES = 1024 * 1024 * 1024
"""A hard limit for the plugin: most of it is reserved by threads, and never used."""
STACK_BYTES = 2 * 1024 * 1024

_ENDED = (RpcCode.CANCELLED, RpcCode.UNAVAILABLE)
"""What a server that stops responds with; the call was not handled."""

MAX_ALLOCATE_MS = 500.0
MAX_HEALTH_MS = 1000.0
MAX_RSS_MIB = 128.0


@dataclass(frozen=True)
class Verdict:
    """What one attack did to the plugin, at worst."""

    attack: str
    calls: int
    failed: int
    allocate_ms: float
    health_ms: float
    rss_mib: float
    descriptors: int
    """Open at most; they are back at their number of before within `DEADLINE_S`."""
    problem: str
    """Why it did not hold; empty if it did."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each attack (default 8)")
    parser.add_argument("--engine", choices=ENGINES, default="fast")
    parser.add_argument("--attack", action="append", choices=ROUNDS, help="only this one")
    parser.add_argument("--json", action="store_true", help="one JSON object per attack")
    options = parser.parse_args()
    if not options.json:
        cores, load = os.cpu_count(), os.getloadavg()[0]
        print(f"{options.engine}, {options.seconds:g} s each, {cores} cores, load {load:.1f}")
        print(
            f"{'attack':26} {'calls':>6} {'failed':>6} {'slowest ms':>10} {'health ms':>9} "
            f"{'RSS MiB':>8} {'fds':>4}  verdict"
        )
    held = True
    for one in siege(options.attack or ROUNDS, options.seconds, options.engine):
        held = held and not one.problem
        print(json.dumps(asdict(one)) if options.json else _row(one), flush=True)
    return 0 if held else 1


def _row(one: Verdict) -> str:
    return (
        f"{one.attack:26} {one.calls:6} {one.failed:6} {one.allocate_ms:10.1f} "
        f"{one.health_ms:9.1f} {one.rss_mib:8.1f} {one.descriptors:4}  {one.problem or 'held'}"
    )


def siege(attacks: Sequence[str], for_s: float, engine: str) -> Iterator[Verdict]:
    folder = Path(tempfile.mkdtemp(prefix="gp"))
    try:
        with _plugin(folder, for_s, engine) as target, Kubelet(folder) as kubelet:
            _wait(kubelet)
            caller = _Caller(target)
            while not caller.calls:  # until then its connection may not have been accepted
                time.sleep(SAMPLE_S)
            at_rest = _settled_descriptors(target)
            for name in attacks:
                yield _attacked(name, target, caller, kubelet, at_rest)
            caller.close()
    finally:
        shutil.rmtree(folder)


@contextmanager
def _plugin(folder: Path, for_s: float, engine: str) -> Iterator[Target]:
    config = folder / "config.yaml"
    config.write_text(GOOD)
    log = folder / "plugin.log"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, STACK_BYTES))
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))

    with log.open("w") as stream:
        plugin = subprocess.Popen(
            [sys.executable, "-m", "gpuplugin", "run", "--backend", "sim", "--kubelet-dir", folder,
             "--listen-address", "127.0.0.1:0", "--config-file", config, "--rpc-engine", engine],
            stdout=stream, stderr=subprocess.STDOUT,
            env={**os.environ, "MALLOC_ARENA_MAX": "2"},  # as in the image
            preexec_fn=limit,  # noqa: PLW1509 - no threads yet
        )  # fmt: skip
    try:
        yield Target(plugin.pid, _port(log), folder, config, for_s)
        plugin.send_signal(signal.SIGTERM)
        plugin.wait(DEADLINE_S)
    finally:
        plugin.kill()
        plugin.wait()


def _port(log: Path) -> int:
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        if found := re.search(r"event=http port=(\d+)", log.read_text()):
            return int(found[1])
        time.sleep(SAMPLE_S)
    raise TimeoutError(f"the plugin serves no HTTP:\n{log.read_text()}")


def _attacked(
    name: str, target: Target, caller: _Caller, kubelet: Kubelet, at_rest: int
) -> Verdict:
    """Run one attack, and see what becomes of the plugin."""
    caller.reset()
    health = _Health(target)
    attacker: threading.Thread | SpawnProcess
    if name == RESTARTS:
        attacker = threading.Thread(target=_restart, args=(kubelet, target.for_s))
    else:
        spawn = multiprocessing.get_context("spawn")
        attacker = spawn.Process(target=_attack, args=(name, target))
    attacker.start()
    rss_mib, descriptors = 0.0, 0
    deadline_s = time.monotonic() + target.for_s + DEADLINE_S
    while attacker.is_alive() and time.monotonic() < deadline_s:
        rss_mib = max(rss_mib, resident_mib([target.pid]))
        descriptors = max(descriptors, _descriptors(target))
        time.sleep(SAMPLE_S)
    attacked = not attacker.is_alive()
    if not isinstance(attacker, threading.Thread):
        attacker.kill()
        attacker.join()
        attacked = attacked and attacker.exitcode == 0
    attacker.join()
    health.stop()
    whole = _is_whole(kubelet)
    left = _settled_descriptors(target, at_rest)
    problems = [
        (not attacked, "the attack did not end by itself without an error"),
        (not caller.calls, "no call came back"),
        (caller.failed > 0, f"{caller.failed} calls failed: {caller.error}"),
        (caller.cut > 0 and name not in CUTTING, f"the connection was cut {caller.cut} times"),
        (caller.slowest_ms > MAX_ALLOCATE_MS, f"Allocate took {caller.slowest_ms:.0f} ms"),
        (health.failed > 0, f"/health failed {health.failed} times"),
        (health.slowest_ms > MAX_HEALTH_MS, f"/health took {health.slowest_ms:.0f} ms"),
        (rss_mib > MAX_RSS_MIB, f"{rss_mib:.0f} MiB resident"),
        (not whole, "the kubelet does not have its devices"),
        (left > at_rest, f"{left} descriptors are open afterwards, {at_rest} were before"),
    ]
    return Verdict(
        name,
        caller.calls,
        caller.failed,
        caller.slowest_ms,
        health.slowest_ms,
        rss_mib,
        descriptors,
        "; ".join(text for wrong, text in problems if wrong),
    )


def _attack(name: str, target: Target) -> None:
    ATTACKS[name](target)


def _restart(kubelet: Kubelet, for_s: float) -> None:
    end_s = time.monotonic() + for_s
    while time.monotonic() < end_s:
        kubelet.restart()
        time.sleep(RESTART_EVERY_S)


def _descriptors(target: Target) -> int:
    with suppress(OSError):
        return len(list(Path(f"/proc/{target.pid}/fd").iterdir()))
    return 0


def _settled_descriptors(target: Target, at_most: int = 0) -> int:
    """The fewest that are open during a second, or the first number that is not over `at_most`."""
    deadline_s = time.monotonic() + (DEADLINE_S if at_most else 1.0)
    fewest = _descriptors(target)
    while fewest > at_most and time.monotonic() < deadline_s:
        time.sleep(SAMPLE_S)
        fewest = min(fewest, _descriptors(target))
    return fewest


class _Repeated(threading.Thread):
    """Does something at a period, and keeps the slowest time and how often it failed."""

    def __init__(self, period_s: float, act: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._period_s = period_s
        self._act = act
        self._stopping = threading.Event()
        self.reset()
        self.start()

    def reset(self) -> None:
        self.calls = self.failed = self.cut = 0
        self._slowest_ms = 0.0
        self._began_ns = 0
        self.error = ""

    @property
    def slowest_ms(self) -> float:
        """One that has not ended yet counts, too."""
        began_ns = self._began_ns  # read once: the call may end meanwhile
        running_ns = time.perf_counter_ns() - began_ns if began_ns else 0
        return max(self._slowest_ms, running_ns / 1e6)

    def run(self) -> None:
        while not self._stopping.wait(self._period_s):
            began_ns = self._began_ns = time.perf_counter_ns()
            try:
                self._act()
            except (CallFailed, OSError, http.client.HTTPException) as error:
                self.failed += 1
                self.error = str(error)
            self.calls += 1
            self._began_ns = 0
            self._slowest_ms = max(self._slowest_ms, (time.perf_counter_ns() - began_ns) / 1e6)

    def stop(self) -> None:
        self._stopping.set()
        self.join()


class _Health(_Repeated):
    def __init__(self, target: Target) -> None:
        self._port = target.port
        super().__init__(HEALTH_EVERY_S, self._ask)

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        with closing(connection):
            connection.request("GET", "/health")
            if (status := connection.getresponse().status) != http.HTTPStatus.OK:
                raise OSError(f"/health responded with {status}")


class _Caller(_Repeated):
    """As the kubelet: one connection, which watches the list and calls Allocate."""

    def __init__(self, target: Target) -> None:
        self._plugin = target
        uuids = [gpu.uuid for gpu in status(control_socket(target.kubelet_dir))][:-1]
        self._requests = [allocate_request([f"{uuid}::{REPLICAS - 1}"]) for uuid in uuids]
        self._connection = self._connected()
        super().__init__(ALLOCATE_EVERY_S, self._allocate)

    def close(self) -> None:
        self.stop()
        self._connection.close()

    def _connected(self) -> Connection:
        """Connect as soon as there is a socket: a new one follows a plugin that was replaced."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while True:
            try:
                connection = Connection(self._plugin.device_socket, TIMEOUT_S)
                connection.start(WATCH, b"", streaming=True)
            except (ConnectionFailed, FileNotFoundError):
                if time.monotonic() >= deadline_s:
                    raise
                time.sleep(SAMPLE_S)
            else:
                return connection

    def _allocate(self) -> None:
        request = self._requests[self.calls % len(self._requests)]
        try:
            self._connection.call(ALLOCATE, request)
        except CallFailed as error:
            if error.code not in _ENDED:
                raise
            self.cut += 1
            self._connection.close()
            self._connection = self._connected()
            self._connection.call(ALLOCATE, request)


def _is_whole(kubelet: Kubelet) -> bool:
    try:
        _wait(kubelet)
    except TimeoutError:
        return False
    return True


def _wait(kubelet: Kubelet) -> None:
    """Until it has the devices of all GPUs that are not attacked: the last one may recover yet."""
    devices = (GPUS - 1) * REPLICAS
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) >= devices, DEADLINE_S)


if __name__ == "__main__":
    sys.exit(main())
