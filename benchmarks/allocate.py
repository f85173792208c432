"""Latency of Allocate over a real socket, as a ratio to an empty handler on the same engine.

The servers run in processes of their own and are called in turns from here, so noise of the
machine hits all alike. `python -m benchmarks.allocate` prints a table, `--json FILE` writes the
figures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from gpuplugin.core.inventory import GPU_RESOURCE, Plan, build_inventory
from gpuplugin.core.sharing import SharedResource, TimeSlicing
from gpuplugin.kubelet.deviceplugin import SERVICE_NAME, DevicePlugin
from gpuplugin.kubelet.engine_grpcio import GrpcioEngine
from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.kubelet.rpc import Service
from gpuplugin.kubelet.snapshot import snapshot_of
from sim.node import SimulatedNode
from sim.scenario import load_scenario

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event as EventType

METHOD = f"/{SERVICE_NAME}/Allocate"
WARM_UP_CALLS = 200


@dataclass(frozen=True)
class Figure:
    """Latencies of one server in microseconds."""

    name: str
    calls: int
    p50_us: float
    p99_us: float
    ratio_p50: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=3000, help="calls per server (default 3000)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args()
    figures = measure((1, 10, 100, 1000), options.calls)
    print(f"{'server':28} {'calls':>6} {'p50 us':>8} {'p99 us':>8} {'p50 ratio':>10}")
    for figure in figures:
        print(
            f"{figure.name:28} {figure.calls:6} {figure.p50_us:8.1f} {figure.p99_us:8.1f} "
            f"{figure.ratio_p50:10.2f}"
        )
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(one) for one in figures], indent=2))


def measure(replica_counts: tuple[int, ...], calls: int) -> list[Figure]:
    """Figures for an empty handler and for eight GPUs at each replica count, interleaved."""
    folder = Path(tempfile.mkdtemp(prefix="gp"))
    context = multiprocessing.get_context("spawn")
    servers: list[tuple[str, Path, bytes]] = [("empty handler", folder / "empty.sock", b"")]
    servers += [
        (f"8 GPUs x {count} replicas", folder / f"r{count}.sock", _request(count))
        for count in replica_counts
    ]
    stop = context.Event()
    processes = []
    for replicas, (_, socket, _) in zip((0, *replica_counts), servers, strict=True):
        ready = context.Event()
        process = context.Process(target=_serve, args=(socket, replicas, ready, stop))
        process.start()
        ready.wait(30)
        processes.append(process)
    try:
        samples = _call_in_turns(servers, calls)
    finally:
        stop.set()
        for process in processes:
            process.join(10)
        shutil.rmtree(folder)
    floor_us = statistics.median(samples[servers[0][0]])
    return [
        Figure(
            name,
            len(times),
            statistics.median(times),
            statistics.quantiles(times, n=100)[98],
            statistics.median(times) / floor_us,
        )
        for name, times in samples.items()
    ]


def _call_in_turns(servers: list[tuple[str, Path, bytes]], calls: int) -> dict[str, list[float]]:
    stubs: list[tuple[str, grpc.UnaryUnaryMultiCallable[bytes, bytes], bytes]] = [
        (name, grpc.insecure_channel(f"unix://{socket}").unary_unary(METHOD), request)
        for name, socket, request in servers
    ]
    samples: dict[str, list[float]] = {name: [] for name, _, _ in stubs}
    for turn in range(calls + WARM_UP_CALLS):
        for name, stub, request in stubs:
            started_ns = time.perf_counter_ns()
            stub(request)
            took_us = (time.perf_counter_ns() - started_ns) / 1000
            if turn >= WARM_UP_CALLS:
                samples[name].append(took_us)
    return samples


def _serve(socket: Path, replicas: int, ready: EventType, stop: EventType) -> None:
    service = _plugin(replicas).service() if replicas else _empty_service()
    server = GrpcioEngine().serve(socket, [service])
    ready.set()
    stop.wait()
    server.stop(0)


def _plugin(replicas: int) -> DevicePlugin:
    gpus = [gpu.identity for gpu in SimulatedNode(load_scenario("default")).gpus.values()]
    inventory = build_inventory(gpus, Plan(TimeSlicing((SharedResource(GPU_RESOURCE, replicas),))))
    return DevicePlugin(snapshot_of(inventory.resources[0]))


def _empty_service() -> Service:
    return Service(SERVICE_NAME, {"Allocate": lambda _request: b""}, {})


def _request(replicas: int) -> bytes:
    device_id = _plugin(replicas).snapshot.resource.devices[-1].id
    return pb.AllocateRequest(
        container_requests=[pb.ContainerAllocateRequest(devices_ids=[device_id])]
    ).SerializeToString()


if __name__ == "__main__":
    main()
