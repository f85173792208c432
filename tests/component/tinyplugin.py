"""A device plugin written by hand on grpcio: what the kubelet stand-in is tested with.

It shares nothing with the plugin of this project but the generated messages.
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import grpc

from gpuplugin.kubelet.proto import deviceplugin_pb2 as dp
from gpuplugin.kubelet.proto import pluginregistration_pb2 as pr
from tests.component.waiting import DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

WIDGET = "example.com/widget"


class TinyPlugin:
    """Serves one socket from `with` on; what it answers is in its attributes."""

    def __init__(
        self,
        socket: Path,
        devices: Iterable[str | tuple[str, str]] = ("w0", "w1", "w2"),
        *,
        resource: str = WIDGET,
        kind: str = "DevicePlugin",
        versions: Sequence[str] = ("v1beta1",),
        endpoint: str = "",
        pre_start: bool = False,
        preference: bool = False,
    ) -> None:
        self.socket = socket
        self.resource = resource
        self.info = pr.PluginInfo(
            type=kind, name=resource, endpoint=endpoint, supported_versions=versions
        )
        self.options = dp.DevicePluginOptions(
            pre_start_required=pre_start, get_preferred_allocation_available=preference
        )
        self.statuses: list[tuple[bool, str]] = []
        self.allocated: list[tuple[str, ...]] = []
        self.pre_started: list[tuple[str, ...]] = []
        self.preferred: list[dp.ContainerPreferredAllocationRequest] = []
        self.asked_info = 0
        self.fail: dict[str, str] = {}
        """Error texts by method: that method fails with it."""
        self.answer_empty = False
        self.hold_info: threading.Event | None = None
        self.hold_options: threading.Event | None = None
        self.hold_allocate: threading.Event | None = None
        self.in_allocate = threading.Event()
        self._list = _device_list(devices)
        self._streams: set[queue.SimpleQueue[bytes | None]] = set()
        self._server: grpc.Server | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen."""
        self.socket.parent.mkdir(parents=True, exist_ok=True)
        pool = ThreadPoolExecutor(8, thread_name_prefix="tiny")
        server = grpc.server(
            pool, options=(("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0))
        )
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "pluginregistration.Registration",
                    {
                        "GetInfo": _unary(self._get_info, pr.InfoRequest),
                        "NotifyRegistrationStatus": _unary(self._notify, pr.RegistrationStatus),
                    },
                ),
                grpc.method_handlers_generic_handler(
                    "v1beta1.DevicePlugin",
                    {
                        "GetDevicePluginOptions": _unary(self._get_options, dp.Empty),
                        "GetPreferredAllocation": _unary(
                            self._prefer, dp.PreferredAllocationRequest
                        ),
                        "Allocate": _unary(self._allocate, dp.AllocateRequest),
                        "PreStartContainer": _unary(self._pre_start, dp.PreStartContainerRequest),
                        "ListAndWatch": grpc.unary_stream_rpc_method_handler(self._watch),
                    },
                ),
            )
        )
        server.add_insecure_port(f"unix://{self.socket}")
        server.start()
        self._server = server

    def stop(self) -> None:
        """End the streams and stop listening; the socket is removed. Safe to call twice."""
        if self._server is None:
            return
        for held in (self.hold_allocate, self.hold_info, self.hold_options):
            if held is not None:
                held.set()
        self.end_streams()
        self._server.stop(0.5).wait(DEADLINE_S)
        self._server = None

    def send(self, devices: Iterable[str | tuple[str, str]]) -> None:
        """Send a new list: ids, or (id, health)."""
        self._list = _device_list(devices)
        for stream in tuple(self._streams):
            stream.put(self._list)

    def end_streams(self) -> None:
        """End the open ListAndWatch streams; the server goes on."""
        for stream in tuple(self._streams):
            stream.put(None)

    @property
    def open_streams(self) -> int:
        """ListAndWatch streams that are open."""
        return len(self._streams)

    def register(
        self, kubelet_dir: Path, *, version: str = "v1beta1", resource: str | None = None
    ) -> None:
        """The classic Register call; raises grpc.RpcError if it is refused."""
        request = dp.RegisterRequest(
            version=version,
            endpoint=self.socket.name,
            resource_name=self.resource if resource is None else resource,
            options=self.options,
        )
        kubelet = kubelet_dir / "device-plugins" / "kubelet.sock"
        with grpc.insecure_channel(f"unix://{kubelet}") as channel:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                "/v1beta1.Registration/Register"
            )
            call(request.SerializeToString(), timeout=DEADLINE_S)

    def _get_info(self, _request: pr.InfoRequest, _context: grpc.ServicerContext) -> pr.PluginInfo:
        self.asked_info += 1
        if self.hold_info is not None:
            self.hold_info.wait(DEADLINE_S)
        return self.info

    def _get_options(
        self, _request: dp.Empty, _context: grpc.ServicerContext
    ) -> dp.DevicePluginOptions:
        if self.hold_options is not None:
            self.hold_options.wait(DEADLINE_S)
        return self.options

    def _notify(
        self, request: pr.RegistrationStatus, _context: grpc.ServicerContext
    ) -> pr.RegistrationStatusResponse:
        self.statuses.append((request.plugin_registered, request.error))
        return pr.RegistrationStatusResponse()

    def _prefer(
        self, request: dp.PreferredAllocationRequest, context: grpc.ServicerContext
    ) -> dp.PreferredAllocationResponse:
        self.preferred.extend(request.container_requests)
        self._perhaps_fail("GetPreferredAllocation", context)
        return dp.PreferredAllocationResponse(
            container_responses=[
                dp.ContainerPreferredAllocationResponse(
                    deviceIDs=sorted(one.available_deviceIDs, reverse=True)[: one.allocation_size]
                )
                for one in request.container_requests
            ]
        )

    def _allocate(
        self, request: dp.AllocateRequest, context: grpc.ServicerContext
    ) -> dp.AllocateResponse:
        self.in_allocate.set()
        if self.hold_allocate is not None:
            self.hold_allocate.wait(DEADLINE_S)
        self._perhaps_fail("Allocate", context)
        if self.answer_empty:
            return dp.AllocateResponse()
        self.allocated.extend(tuple(one.devices_ids) for one in request.container_requests)
        return dp.AllocateResponse(
            container_responses=[
                dp.ContainerAllocateResponse(
                    envs={"WIDGETS": ",".join(one.devices_ids)},
                    mounts=[dp.Mount(container_path="/w", host_path="/host/w", read_only=True)],
                    devices=[
                        dp.DeviceSpec(
                            container_path="/dev/w", host_path="/dev/host-w", permissions="rw"
                        )
                    ],
                    annotations={"widget": "yes"},
                    cdi_devices=[dp.CDIDevice(name="example.com/widget=all")],
                )
                for one in request.container_requests
            ]
        )

    def _pre_start(
        self, request: dp.PreStartContainerRequest, context: grpc.ServicerContext
    ) -> dp.PreStartContainerResponse:
        self.pre_started.append(tuple(request.devices_ids))
        self._perhaps_fail("PreStartContainer", context)
        return dp.PreStartContainerResponse()

    def _perhaps_fail(self, method: str, context: grpc.ServicerContext) -> None:
        text = self.fail.get(method)
        if text is not None:
            context.abort(grpc.StatusCode.INTERNAL, text)

    def _watch(self, _request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        stream: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        stream.put(self._list)
        self._streams.add(stream)
        try:
            if not context.add_callback(lambda: stream.put(None)):
                return
            while (message := stream.get()) is not None:
                yield message
        finally:
            self._streams.discard(stream)


def _unary(answer: Callable[[Any, grpc.ServicerContext], Any], request: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=request.FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )


def _device_list(devices: Iterable[str | tuple[str, str]]) -> bytes:
    pairs = [(one, "Healthy") if isinstance(one, str) else one for one in devices]
    return dp.ListAndWatchResponse(
        devices=[dp.Device(ID=id_, health=health) for id_, health in pairs]
    ).SerializeToString()
