"""Connections to DRA drivers: calls with a deadline, from any thread, and the health streams."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import grpc

from gpuplugin.kubelet.proto import dra_pb2 as pb
from gpuplugin.rpc.services import grpc_target
from sim.kubelet.admission import CallFailed
from sim.kubelet.claims import PrepareCall
from sim.kubelet.messages import answers_to, device_health, driver_request
from sim.kubelet.plugins import go_error
from sim.kubelet.pods import CallRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sim.kubelet.claims import Answers, DeviceHealth, DriverCall

    OnHealth = Callable[[str, Sequence[DeviceHealth]], None]

HEALTH_AGAIN_S = 5.0
"""A health stream that ended, or is not served, is opened again after this."""
_PACKAGE = "k8s.io.kubelet.pkg.apis.dra"


class DriverClient:
    """A connection to one instance of a driver, for all of its calls and its health stream."""

    def __init__(
        self,
        driver: str,
        endpoint: Path,
        version: str,
        deadline_s: float,
        record: Callable[[CallRecord], None],
    ) -> None:
        self.driver = driver
        self.endpoint = endpoint
        self._service = f"{_PACKAGE}.{version}"
        self._deadline_s = deadline_s
        self._record = record
        self._channel = grpc.insecure_channel(grpc_target(endpoint))
        self._closed = threading.Event()
        self._follower: threading.Thread | None = None

    def call(self, call: DriverCall) -> Answers:
        """Raises `CallFailed` with the text of Go's gRPC library."""
        prepare = isinstance(call, PrepareCall)
        method = "NodePrepareResources" if prepare else "NodeUnprepareResources"
        make: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            f"/{self._service}/{method}"
        )
        request = driver_request(call).SerializeToString()
        started_s, failure = time.perf_counter(), ""
        try:
            return answers_to(call, make(request, timeout=self._deadline_s))
        except (grpc.RpcError, ValueError) as error:
            failure = go_error(error)
            raise CallFailed(failure) from error
        finally:
            took_s = time.perf_counter() - started_s
            self._record(CallRecord(method, self.driver, took_s, failure))

    def follow_health(self, on_health: OnHealth) -> None:
        """Hand over each message of the health stream, until the connection is closed."""
        self._follower = threading.Thread(
            target=self._follow, args=(on_health,), name=f"health-{self.driver}", daemon=True
        )
        self._follower.start()

    def close(self) -> None:
        """Disconnect; calls that are under way fail. Safe to call twice."""
        if not self._closed.is_set():
            self._closed.set()
            self._channel.close()

    def join(self) -> None:
        if self._follower is not None:
            self._follower.join()

    def _follow(self, on_health: OnHealth) -> None:
        while not self._closed.is_set():
            try:
                stream = self._channel.unary_stream(
                    "/v1alpha1.DRAResourceHealth/NodeWatchResources",
                    pb.NodeWatchResourcesRequest.SerializeToString,
                    pb.NodeWatchResourcesResponse.FromString,
                )
                for message in stream(pb.NodeWatchResourcesRequest()):
                    on_health(self.driver, device_health(message))
            except (grpc.RpcError, ValueError):
                pass  # not served, ended, or closed: all the same to a kubelet
            self._closed.wait(HEALTH_AGAIN_S)


class DriverConnections:
    """Open connections by endpoint; the health stream is that of a driver's newest instance."""

    def __init__(
        self, deadline_s: float, record: Callable[[CallRecord], None], on_health: OnHealth
    ) -> None:
        self._deadline_s = deadline_s
        self._record = record
        self._on_health = on_health
        self._lock = threading.Lock()
        self._clients: dict[str, DriverClient] = {}
        self._closed: list[DriverClient] = []

    def open(self, driver: str, endpoint: Path, version: str) -> None:
        client = DriverClient(driver, endpoint, version, self._deadline_s, self._record)
        with self._lock:
            self._clients[str(endpoint)] = client
        client.follow_health(lambda name, devices: self._received(client, name, devices))

    def client(self, endpoint: str) -> DriverClient | None:
        with self._lock:
            return self._clients.get(endpoint)

    def close(self, endpoint: Path) -> None:
        with self._lock:
            client = self._clients.pop(str(endpoint), None)
            if client is not None:
                self._closed.append(client)
        if client is not None:
            client.close()

    def close_all(self) -> None:
        with self._lock:
            clients = [*self._clients.values(), *self._closed]
            self._clients.clear()
            self._closed.clear()
        for client in clients:
            client.close()
        for client in clients:
            client.join()

    def _received(self, client: DriverClient, driver: str, devices: Sequence[DeviceHealth]) -> None:
        with self._lock:
            mine = [one for one in self._clients.values() if one.driver == driver]
        if mine and mine[-1] is client:
            self._on_health(driver, devices)
