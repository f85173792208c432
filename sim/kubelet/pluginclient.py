"""The kubelet's side of one device plugin: its connection, its calls, its list stream."""

from __future__ import annotations

import threading
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import grpc

from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.rpc.services import grpc_target
from sim.kubelet.admission import CallFailed
from sim.kubelet.devices import Listed
from sim.kubelet.pods import Grant
from sim.kubelet.view import CallRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from google.protobuf.message import Message

DIAL_TIMEOUT_S = 10.0
PRE_START_TIMEOUT_S = 30.0

_GO_CODES = {
    code: "".join(word.capitalize() for word in code.name.split("_")) for code in grpc.StatusCode
} | {grpc.StatusCode.OK: "OK", grpc.StatusCode.CANCELLED: "Canceled"}

_Q = TypeVar("_Q", bound="Message")
_A = TypeVar("_A", bound="Message")


def go_error(error: Exception) -> str:
    """A gRPC error in the words of Go's library, which are those of a pod's status."""
    if isinstance(error, grpc.Call):
        return f"rpc error: code = {_GO_CODES[error.code()]} desc = {error.details()}"
    return f"rpc error: code = Unknown desc = {error}"


class PluginClient:
    """A connection to a plugin's socket; calls have no deadline, as the kubelet's have none."""

    def __init__(self, resource: str, socket: Path, record: Callable[[CallRecord], None]) -> None:
        self.resource = resource
        self.socket = socket
        self._record = record
        # The kubelet keeps gRPC's default receive limit of 4 MiB; so does this channel.
        self._channel = grpc.insecure_channel(grpc_target(socket))
        self._ready = grpc.channel_ready_future(self._channel)
        self._closed = False

    def dial(self) -> None:
        """Wait until the plugin answers.

        Raises:
            CallFailed: it does not within ten seconds, or the connection was closed meanwhile.
        """
        try:
            self._ready.result(DIAL_TIMEOUT_S)
        except (grpc.FutureTimeoutError, grpc.FutureCancelledError):
            self.close()
            raise CallFailed(f"failed to dial device plugin with {self.socket}") from None

    def options(self) -> pb.DevicePluginOptions:
        """GetDevicePluginOptions."""
        return self._call("GetDevicePluginOptions", pb.Empty(), pb.DevicePluginOptions)

    def prefer(
        self, available: Sequence[str], must_include: Sequence[str], size: int
    ) -> tuple[str, ...]:
        """GetPreferredAllocation for one container."""
        request = pb.PreferredAllocationRequest(
            container_requests=[
                pb.ContainerPreferredAllocationRequest(
                    available_deviceIDs=available,
                    must_include_deviceIDs=must_include,
                    allocation_size=size,
                )
            ]
        )
        answer = self._call("GetPreferredAllocation", request, pb.PreferredAllocationResponse)
        if not answer.container_responses:
            return ()
        return tuple(answer.container_responses[0].deviceIDs)

    def allocate(self, container: str, device_ids: Sequence[str]) -> Grant | None:
        """Allocate for one container; None if the plugin's answer is empty."""
        request = pb.AllocateRequest(
            container_requests=[pb.ContainerAllocateRequest(devices_ids=device_ids)]
        )
        answer = self._call("Allocate", request, pb.AllocateResponse)
        if not answer.container_responses:
            return None
        granted = answer.container_responses[0]
        return Grant(
            container=container,
            resource=self.resource,
            device_ids=tuple(device_ids),
            envs=MappingProxyType(dict(granted.envs)),
            annotations=MappingProxyType(dict(granted.annotations)),
            mounts=tuple(f"{m.host_path}:{m.container_path}" for m in granted.mounts),
            devices=tuple(device.host_path for device in granted.devices),
            cdi_devices=tuple(device.name for device in granted.cdi_devices),
            raw=granted.SerializeToString(),
        )

    def pre_start(self, device_ids: Sequence[str]) -> None:
        """PreStartContainer, the one call with a deadline."""
        request = pb.PreStartContainerRequest(devices_ids=device_ids)
        self._call("PreStartContainer", request, pb.PreStartContainerResponse, PRE_START_TIMEOUT_S)

    def watch(
        self, on_list: Callable[[tuple[Listed, ...], int], None], on_end: Callable[[str], None]
    ) -> threading.Thread:
        """Follow ListAndWatch in a thread: `on_list` gets (devices, bytes), `on_end` the error."""

        def follow() -> None:
            stream = self._channel.unary_stream(
                "/v1beta1.DevicePlugin/ListAndWatch",
                pb.Empty.SerializeToString,
                pb.ListAndWatchResponse.FromString,
            )
            reason = ""
            try:
                for message in stream(pb.Empty()):
                    on_list(_listed(message), message.ByteSize())
            except grpc.RpcError as error:
                reason = go_error(error)
            except ValueError:
                reason = "the connection was closed"
            on_end(reason)

        thread = threading.Thread(target=follow, name=f"list-{self.resource}", daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """Disconnect; the stream ends. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._ready.cancel()
            self._channel.close()

    def _call(
        self, method: str, request: _Q, answer: type[_A], timeout_s: float | None = None
    ) -> _A:
        call = self._channel.unary_unary(
            f"/v1beta1.DevicePlugin/{method}", type(request).SerializeToString, answer.FromString
        )
        started_s = time.perf_counter()
        failure = ""
        try:
            return call(request, timeout=timeout_s)
        except grpc.RpcError as error:
            failure = go_error(error)
            raise CallFailed(failure) from error
        except ValueError as error:
            failure = "rpc error: code = Canceled desc = the connection was closed"
            raise CallFailed(failure) from error
        finally:
            duration_s = time.perf_counter() - started_s
            self._record(CallRecord(method, self.resource, duration_s, failure))


def _listed(message: pb.ListAndWatchResponse) -> tuple[Listed, ...]:
    """Any health but "Healthy" counts as unhealthy, as in the kubelet."""
    return tuple(
        Listed(
            device.ID,
            device.health == "Healthy",
            tuple(node.ID for node in device.topology.nodes),
        )
        for device in message.devices
    )
