"""A DRA driver written by hand on grpcio: what the kubelet stand-in is tested with.

It shares nothing with the plugin of this project but the generated messages.
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import grpc

from gpuplugin.kubelet.proto import dra_pb2 as pb
from gpuplugin.kubelet.proto import pluginregistration_pb2 as pr
from sim.apiserver import CLAIMS, Key
from tests.component.waiting import DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from sim.apiserver import Store

DRIVER = "gpu.example.com"


class TinyDriver:
    """Serves two sockets from `with` on; what it answers is in its attributes."""

    def __init__(
        self,
        kubelet_dir: Path,
        store: Store,
        instance: str = "a",
        *,
        driver: str = DRIVER,
        versions: Sequence[str] = ("v1.DRAPlugin", "v1beta1.DRAPlugin"),
        served: Sequence[str] = ("v1", "v1beta1"),
    ) -> None:
        self.calls_socket = kubelet_dir / "plugins" / driver / f"dra-{instance}.sock"
        self.socket = kubelet_dir / "plugins_registry" / f"{driver}-{instance}-reg.sock"
        self.info = pr.PluginInfo(
            type="DRAPlugin",
            name=driver,
            endpoint=str(self.calls_socket),
            supported_versions=versions,
        )
        self.prepared: list[list[str]] = []
        """Names of claims, call by call."""
        self.unprepared: list[list[str]] = []
        self.statuses: list[tuple[bool, str]] = []
        self.error = ""
        """For each claim."""
        self.rpc_error = ""
        self.skip = False
        """Answer nothing."""
        self.hold: set[str] = set()
        """Names of claims whose Prepare hangs."""
        self.used: list[str] = []
        """Versions of the service that were called."""
        self._driver = driver
        self._store = store
        self._served = served
        self._released = threading.Event()
        self._health: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._servers: list[grpc.Server] = []

    def __enter__(self) -> Self:
        services = {
            f"k8s.io.kubelet.pkg.apis.dra.{version}.DRAPlugin": {
                "NodePrepareResources": _unary(
                    self._noted(version, self._prepare), pb.NodePrepareResourcesRequest
                ),
                "NodeUnprepareResources": _unary(
                    self._noted(version, self._unprepare), pb.NodeUnprepareResourcesRequest
                ),
            }
            for version in self._served
        }
        services["v1alpha1.DRAResourceHealth"] = {
            "NodeWatchResources": grpc.unary_stream_rpc_method_handler(self._watch)
        }
        self._serve(self.calls_socket, services)
        registration = {
            "GetInfo": _unary(lambda _request, _context: self.info, pr.InfoRequest),
            "NotifyRegistrationStatus": _unary(self._notify, pr.RegistrationStatus),
        }
        self._serve(self.socket, {"pluginregistration.Registration": registration})
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop listening; both sockets are removed. Safe to call twice."""
        self.release()
        self._health.put(None)
        for server in reversed(self._servers):
            server.stop(0.5).wait(DEADLINE_S)
        self._servers.clear()

    def release(self) -> None:
        """Let calls that hang return."""
        self._released.set()

    def tell_health(self, *devices: tuple[str, str, int, str]) -> None:
        """Send (pool, device, timeout in seconds, message or "" for a healthy one)."""
        self._health.put(
            pb.NodeWatchResourcesResponse(
                devices=[
                    pb.DeviceHealth(
                        device=pb.DeviceIdentifier(pool_name=pool, device_name=device),
                        health=pb.UNHEALTHY if message else pb.HEALTHY,
                        message=message,
                        health_check_timeout_seconds=timeout_s,
                    )
                    for pool, device, timeout_s, message in devices
                ]
            ).SerializeToString()
        )

    def _serve(self, socket: Path, services: dict[str, dict[str, Any]]) -> None:
        socket.parent.mkdir(parents=True, exist_ok=True)
        server = grpc.server(ThreadPoolExecutor(16), options=(("grpc.so_reuseport", 0),))
        for name, handlers in services.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        server.add_insecure_port(f"unix://{socket}")
        server.start()
        self._servers.append(server)

    def _noted(self, version: str, handler: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def noting(request: Any, context: grpc.ServicerContext) -> Any:
            self.used.append(version)
            if self.rpc_error:
                context.abort(grpc.StatusCode.INTERNAL, self.rpc_error)
            return handler(request, context)

        return noting

    def _prepare(
        self, request: pb.NodePrepareResourcesRequest, _context: grpc.ServicerContext
    ) -> pb.NodePrepareResourcesResponse:
        self.prepared.append([claim.name for claim in request.claims])
        response = pb.NodePrepareResourcesResponse()
        for claim in () if self.skip else request.claims:
            if claim.name in self.hold:
                assert self._released.wait(DEADLINE_S)
            answer = response.claims[claim.uid]
            if self.error:
                answer.error = self.error
                continue
            body: dict[str, Any] = self._store.get(Key(CLAIMS, claim.name, claim.namespace))
            for result in body["status"]["allocation"]["devices"]["results"]:
                if result["driver"] == self._driver:
                    answer.devices.add(
                        request_names=[result["request"]],
                        pool_name=result["pool"],
                        device_name=result["device"],
                        cdi_device_ids=[f"example.com/claim={claim.uid}-{result['device']}"],
                        share_id=result.get("shareID", ""),
                    )
        return response

    def _unprepare(
        self, request: pb.NodeUnprepareResourcesRequest, _context: grpc.ServicerContext
    ) -> pb.NodeUnprepareResourcesResponse:
        self.unprepared.append([claim.name for claim in request.claims])
        response = pb.NodeUnprepareResourcesResponse()
        for claim in request.claims:
            response.claims[claim.uid].error = self.error
        return response

    def _watch(self, _request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        while (message := self._health.get()) is not None:
            yield message

    def _notify(
        self, status: pr.RegistrationStatus, _context: grpc.ServicerContext
    ) -> pr.RegistrationStatusResponse:
        self.statuses.append((status.plugin_registered, status.error))
        return pr.RegistrationStatusResponse()


def _unary(handler: Callable[[Any, Any], Any], request: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        handler, request.FromString, lambda message: message.SerializeToString()
    )
