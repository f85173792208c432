"""Dynamic Resource Allocation: claims over the daemon's socket, slices at an API server, memory.

The API server is the simulated one, in this process: what it takes to answer is in the figures, and
measured alone. Files are on the disk that `TMPDIR` names; one that is written and synced there is
the floor.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from benchmarks.calls import Subject
from benchmarks.machine import resident_mib
from benchmarks.plugins import GPUS, START_TIMEOUT_S, own_plugin, simulated_node, started
from benchmarks.servers import DidNotStart
from gpuplugin.core.dra.devices import Offer
from gpuplugin.core.dra.slices import Pool
from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.daemon.status import StatusBoard
from gpuplugin.kubelet.proto import dra_pb2 as pb
from gpuplugin.kubelet.proto import pluginregistration_pb2 as registration
from gpuplugin.rpc.client import Connection, Method
from gpuplugin.rpc.services import grpc_target
from sim.apiserver import CLAIMS, SLICES, ApiServer, Key, Selection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.plugins import Node, PluginSpec, RunningPlugin
    from benchmarks.results import Measurement
    from benchmarks.suites import Context

REPLICAS = 200
"""Room for all claims of one moment: 8 x 200 shares."""
AT_ONCE = 1000
NODES = 64
NODE = "bench"
SETTLE_S = 6.0
WRITE, READ, POST = "a file, synced", "a claim, read", "64 POSTs"

_SERVICE = "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin"
_PREPARE = Method.of(f"{_SERVICE}/NodePrepareResources")
_UNPREPARE = Method.of(f"{_SERVICE}/NodeUnprepareResources")
_GET_INFO = Method.of("/pluginregistration.Registration/GetInfo")
_CALL_S = 45.0


def measure(context: Context) -> list[Measurement]:
    figures: list[Measurement] = []
    if find_spec("lightkube") is None:
        context.note("No claims without a Kubernetes client: pip install 'gpuplugin[kubernetes]'.")
        return figures
    with ExitStack() as stack:
        server = stack.enter_context(ApiServer([NODE]))
        server.kubeconfig(context.folder)
        node = stack.enter_context(simulated_node(context.folder / "n"))
        drivers = []
        for engine in context.engines:
            spec = _spec(own_plugin(engine, node.backend), context.folder)
            drivers.append(_Driver.started(stack, spec, _with_api(node, context.folder), server))
        # The configuration is read once more meanwhile, in a process of its own.
        time.sleep(SETTLE_S if context.effort.idle_s >= 1 else context.effort.idle_s)
        figures += [
            context.number("resident, idle", one.name, "MiB", resident_mib(one.running.pids))
            for one in drivers
        ]
        figures += _one_by_one(context, drivers)
        for number, driver in enumerate(drivers):
            context.progress("claims at once", number / len(drivers))
            figures += _at_once(context, driver)
    figures += _published(context)
    return figures


def _spec(own: PluginSpec, folder: Path) -> PluginSpec:
    """The daemon in DRA mode. Each has a driver of its own: there is one API server for all."""
    driver = f"{own.engine}.gpuplugin.dev"
    options = (
        *("--allocation", "dra", "--node-name", NODE, "--dra-driver-name", driver),
        *("--cdi-root", str(folder / f"cdi-{own.engine}")),
    )
    return replace(own, command=(*own.command, *options))


def _with_api(node: Node, folder: Path) -> Node:
    environment = {"KUBECONFIG": str(folder / "kubeconfig"), "NO_PROXY": "127.0.0.1"}
    return replace(node, environment=node.environment | environment)


@dataclass(frozen=True, slots=True)
class _Driver:
    """A daemon with its sockets for calls, and the devices that it published."""

    name: str
    driver: str
    running: RunningPlugin
    server: ApiServer
    calls: Path
    devices: tuple[str, ...]

    @classmethod
    def started(cls, stack: ExitStack, spec: PluginSpec, node: Node, server: ApiServer) -> _Driver:
        driver = f"{spec.engine}.gpuplugin.dev"
        running = stack.enter_context(started(spec, node, REPLICAS))
        registry = running.kubelet.folder / "plugins_registry"
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            sockets = list(registry.rglob(f"{driver}-*-reg.sock"))
            devices = tuple(_devices(server, driver))
            if sockets and devices:
                break
            if time.monotonic() > deadline_s or not running.alive():
                raise DidNotStart(running.failure("offers no device by DRA"))
            time.sleep(0.01)
        with Connection(sockets[0], _CALL_S) as found:
            info = registration.PluginInfo.FromString(found.call(_GET_INFO, b""))
        return cls(spec.name, driver, running, server, Path(info.endpoint), devices)

    def claims(self, count: int) -> list[pb.Claim]:
        """Claims for one share each that are allocated, spread over the GPUs."""
        return [
            _allocated(self.server, self.driver, self.devices[number % len(self.devices)], number)
            for number in range(count)
        ]

    def gone(self, claims: list[pb.Claim]) -> None:
        for claim in claims:
            self.server.store.delete(Key(CLAIMS, claim.name, claim.namespace))


def _devices(server: ApiServer, driver: str) -> Iterator[str]:
    _, slices = server.store.select(Selection(SLICES, fields={"spec.driver": driver}))
    for one in slices:
        spec = one["spec"]
        assert isinstance(spec, dict)  # noqa: S101 - the API's own form
        yield from (device["name"] for device in spec["devices"])


def _allocated(server: ApiServer, driver: str, device: str, number: int) -> pb.Claim:
    key = Key(CLAIMS, f"{driver}-{number}", "default")
    made = server.store.create(key, {"spec": {"devices": {"requests": []}}})
    result = {
        "request": "gpu", "driver": driver, "pool": NODE, "device": device,
        "shareID": server.store.new_uid(), "consumedCapacity": {"shares": "1", "memory": "0"},
    }  # fmt: skip
    allocation = {"devices": {"results": [result], "config": []}}
    server.store.patch(key, {"status": {"allocation": allocation}}, status=True)
    metadata = made["metadata"]
    assert isinstance(metadata, dict)  # noqa: S101 - the API's own form
    return pb.Claim(namespace="default", name=key.name, uid=str(metadata["uid"]))


def _one_by_one(context: Context, drivers: list[_Driver]) -> list[Measurement]:
    """Prepare and Unprepare of one share, one call after the other."""
    folder = context.folder / "floor"
    folder.mkdir()
    undone: dict[str, list[list[float]]] = {one.name: [] for one in drivers}
    calls = context.effort.calls
    subjects = [
        Subject(WRITE, partial(_write_files, folder, calls)),
        Subject(READ, partial(_read_claims, drivers[0], calls)),
    ]
    subjects += [
        Subject(one.name, partial(_round, one, calls, undone[one.name])) for one in drivers
    ]
    done = context.turns(subjects, context.effort.prefer_rounds, "prepare and unprepare")
    floor = done.pop(WRITE)
    floors = {WRITE: floor}
    figures = [
        context.figure(WRITE, "the disk", "ms", floor),
        context.figure(READ, "the API server", "ms", done.pop(READ)),
    ]
    for one in drivers:
        both = {"Prepare, one share": done[one.name], "Unprepare, one share": undone[one.name]}
        figures += [
            context.figure(case, one.name, "ms", rounds, floors, p99_floors=(WRITE,))
            for case, rounds in both.items()
        ]
    return figures


def _write_files(folder: Path, count: int) -> list[float]:
    """What has to be done at least for one thing to be remembered: a file and its name."""
    return [_write_file(folder, number) for number in range(count)]


def _write_file(folder: Path, number: int) -> float:
    path = folder / f"{number}.json"
    content = b"x" * 1500
    began_ns = time.perf_counter_ns()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(descriptor, content)
    os.fsync(descriptor)
    os.close(descriptor)
    named = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(named)
    os.close(named)
    took_ms = (time.perf_counter_ns() - began_ns) / 1e6
    path.unlink()
    return took_ms


def _read_claims(driver: _Driver, count: int) -> list[float]:
    """What a claim costs that is read by a client which does nothing else, from one connection."""
    (claim,) = driver.claims(1)
    path = f"/apis/resource.k8s.io/v1/namespaces/default/resourceclaims/{claim.name}"
    connection = HTTPConnection(driver.server.url.removeprefix("http://"))
    took_ms = []
    for _ in range(count):
        began_ns = time.perf_counter_ns()
        connection.request("GET", path)
        connection.getresponse().read()
        took_ms.append((time.perf_counter_ns() - began_ns) / 1e6)
    connection.close()
    driver.gone([claim])
    return took_ms


def _round(driver: _Driver, count: int, undone: list[list[float]]) -> list[float]:
    """Times of Prepare; those of Unprepare are added to `undone`. The first does not count."""
    claims = driver.claims(count + 1)
    with Connection(driver.calls, _CALL_S) as kubelet:
        prepared = [_timed(kubelet, _PREPARE, _prepare_request(one)) for one in claims]
        undone.append([_timed(kubelet, _UNPREPARE, _unprepare_request(one)) for one in claims][1:])
    driver.gone(claims)
    return prepared[1:]


def _prepare_request(*claims: pb.Claim) -> bytes:
    return pb.NodePrepareResourcesRequest(claims=claims).SerializeToString()


def _unprepare_request(*claims: pb.Claim) -> bytes:
    return pb.NodeUnprepareResourcesRequest(claims=claims).SerializeToString()


def _timed(kubelet: Connection, method: Method, request: bytes) -> float:
    began_ns = time.perf_counter_ns()
    response = kubelet.call(method, request)
    took_ms = (time.perf_counter_ns() - began_ns) / 1e6
    _check(method, response)
    return took_ms


def _check(method: Method, response: bytes) -> None:
    """What failed may have been quick: it is no figure."""
    if method is _PREPARE:
        for answer in pb.NodePrepareResourcesResponse.FromString(response).claims.values():
            if answer.error or not answer.devices:
                raise DidNotStart(f"a claim was not prepared: {answer.error}")
        return
    for ended in pb.NodeUnprepareResourcesResponse.FromString(response).claims.values():
        if ended.error:
            raise DidNotStart(f"a claim was not unprepared: {ended.error}")


def _at_once(context: Context, driver: _Driver) -> list[Measurement]:
    """Claims of as many pods in calls at the same time, as when a whole node starts anew."""
    count = AT_ONCE if not context.quick else AT_ONCE // 5
    claims = driver.claims(count)
    figures = []
    with grpc.insecure_channel(grpc_target(driver.calls)) as channel:
        for what, method, request in (
            ("Prepare", _PREPARE, _prepare_request),
            ("Unprepare", _UNPREPARE, _unprepare_request),
        ):
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                f"{_SERVICE}/Node{what}Resources"
            )
            took_ms, all_ms, responses = _together(call, [request(claim) for claim in claims])
            for response in responses:
                _check(method, response)
            case = f"{what}, {count} claims at once"
            figures += [
                context.number(f"{case}, all of them", driver.name, "ms", all_ms),
                context.figure(f"{case}, each", driver.name, "ms", [took_ms]),
            ]
    driver.gone(claims)
    return figures


def _together(
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes], requests: Sequence[bytes]
) -> tuple[list[float], float, list[bytes]]:
    """The time of each call and of all, in milliseconds, and the responses."""
    took_ms: list[float] = []
    done = threading.Semaphore(0)

    def ended(began_ns: int, _call: object) -> None:
        took_ms.append((time.perf_counter_ns() - began_ns) / 1e6)
        done.release()

    started_ns = time.perf_counter_ns()
    futures = []
    for request in requests:
        future = call.future(request, timeout=_CALL_S)
        future.add_done_callback(partial(ended, time.perf_counter_ns()))
        futures.append(future)
    for _ in futures:
        done.acquire()
    all_ms = (time.perf_counter_ns() - started_ns) / 1e6
    try:
        return took_ms, all_ms, [future.result() for future in futures]
    except grpc.RpcError as error:
        raise DidNotStart(f"of many calls at once one failed: {error}") from error


def _published(context: Context) -> list[Measurement]:
    """Slices of many nodes, each published by a plugin of its own, at one moment."""
    with ApiServer([f"node-{number}" for number in range(NODES)]) as server:
        floors, took = [], []
        for number in range(max(1, context.effort.starts // 3)):
            context.progress("slices", number / (context.effort.starts // 3 or 1))
            took.append([asyncio.run(_publish(server, context.folder))])
            floors.append([_post(server)])
    case = f"{NODES} nodes of {GPUS} GPUs published"
    return [
        context.figure(POST, "the API server", "ms", floors),
        context.figure(case, "gpuplugin", "ms", took, {POST: floors}),
    ]


async def _publish(server: ApiServer, folder: Path) -> float:
    """Until all slices are stored, in milliseconds; publishers have listed before."""
    from lightkube import KubeConfig

    from gpuplugin.daemon.dra.publisher import SlicePublisher

    config = KubeConfig.from_file(server.kubeconfig(folder)).get()
    if config is None:
        raise DidNotStart("the kubeconfig of the simulated API server is of no use")
    publishers = []
    for number in range(NODES):
        pool, lead = Pool("gpu.gpuplugin.dev", f"node-{number}"), folder / f"lead-{number}"
        publishers.append(SlicePublisher(pool, lead, config, StatusBoard(), Metrics()))
    tasks = [asyncio.create_task(one.run()) for one in publishers]
    offers = [_offer(gpu) for gpu in range(GPUS)]
    await _until(lambda: _watches(server) >= NODES)
    began_ns = time.perf_counter_ns()
    for publisher in publishers:
        publisher.offer(offers)
    await _until(lambda: len(server.store.select(Selection(SLICES))[1]) >= NODES)
    took_ms = (time.perf_counter_ns() - began_ns) / 1e6
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    server.requests.clear()
    server.store.delete_all(Selection(SLICES))
    return took_ms


def _watches(server: ApiServer) -> int:
    return sum(one.right == ("watch", "resourceslices", "") for one in server.requests)


async def _until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise DidNotStart("slices are not published")
        await asyncio.sleep(0.005)


def _post(server: ApiServer) -> float:
    """As many slices sent by one client, one after the other."""
    connection = HTTPConnection(server.url.removeprefix("http://"))
    bodies = [
        json.dumps(
            {
                "metadata": {"name": f"floor-{number}"},
                "spec": {
                    "driver": "gpu.gpuplugin.dev",
                    "nodeName": f"node-{number}",
                    "pool": {"name": f"node-{number}", "generation": 1, "resourceSliceCount": 1},
                    "devices": [_offer(gpu).as_json() for gpu in range(GPUS)],
                },
            }
        )
        for number in range(NODES)
    ]
    began_ns = time.perf_counter_ns()
    for body in bodies:
        connection.request(
            "POST",
            "/apis/resource.k8s.io/v1/resourceslices",
            body,
            {"Content-Type": "application/json"},
        )
        response = connection.getresponse()
        response.read()
    took_ms = (time.perf_counter_ns() - began_ns) / 1e6
    connection.close()
    server.store.delete_all(Selection(SLICES))
    return took_ms


def _offer(gpu: int) -> Offer:
    uuid = f"GPU-{gpu:08x}-0000-4000-8000-000000000000"
    attributes = {"uuid": uuid, "type": "gpu", "productName": "NVIDIA H100 80GB HBM3"}
    return Offer(
        f"gpu-{gpu}", (uuid, None), "nvidia.com/gpu", 10, 80 * 1024**3, attributes=attributes
    )
