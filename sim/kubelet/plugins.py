"""Connections to plugins, by resource name alone, as in the kubelet (1.36).

A second plugin of a resource replaces the first, whose stream goes on until it ends by itself; when
it does, whatever is connected for the resource by then is disconnected.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.protobuf.message import DecodeError

from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.rpc.services import grpc_target
from sim.kubelet.admission import CallFailed, PreStartCall
from sim.kubelet.messages import failure_text, listed, request_for, response_to
from sim.kubelet.pods import CallRecord

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from google.protobuf.message import Message

    from sim.kubelet.admission import PluginCall, Response
    from sim.kubelet.devices import Listed

_R = TypeVar("_R")

DIAL_TIMEOUT_S = 10.0
PRE_START_TIMEOUT_S = 30.0


def go_error(error: Exception) -> str:
    """A gRPC error in the words of Go's library, which are those of a pod's status."""
    if isinstance(error, grpc.Call):
        return failure_text(error.code().name, error.details() or "")
    return failure_text("UNKNOWN", str(error))


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
        """Wait until the plugin responds; raises `CallFailed` after ten seconds or a close."""
        try:
            self._ready.result(DIAL_TIMEOUT_S)
        except (grpc.FutureTimeoutError, grpc.FutureCancelledError):
            self.close()
            raise CallFailed(f"failed to dial device plugin with {self.socket}") from None

    def options(self) -> pb.DevicePluginOptions:
        parse = pb.DevicePluginOptions.FromString
        return self._call("GetDevicePluginOptions", pb.Empty(), parse)

    def call(self, call: PluginCall) -> Response:
        """One call of an admission; raises `CallFailed` with the text of Go's gRPC library."""
        method, request = request_for(call)
        timeout_s = PRE_START_TIMEOUT_S if isinstance(call, PreStartCall) else None
        return self._call(method, request, partial(response_to, call), timeout_s)

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
                    on_list(listed(message), message.ByteSize())
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
        self,
        method: str,
        request: Message,
        parse: Callable[[bytes], _R],
        timeout_s: float | None = None,
    ) -> _R:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            f"/v1beta1.DevicePlugin/{method}"
        )
        started_s = time.perf_counter()
        failure = ""
        try:
            return parse(call(request.SerializeToString(), timeout=timeout_s))
        except grpc.RpcError as error:
            failure = go_error(error)
            raise CallFailed(failure) from error
        except DecodeError as error:
            failure = failure_text("INTERNAL", str(error))
            raise CallFailed(failure) from error
        except ValueError as error:
            failure = failure_text("CANCELLED", "the connection was closed")
            raise CallFailed(failure) from error
        finally:
            duration_s = time.perf_counter() - started_s
            self._record(CallRecord(method, self.resource, duration_s, failure))


class Connections:
    """Open connections; `on_list` and `on_end` are called from the streams' threads."""

    def __init__(
        self,
        record: Callable[[CallRecord], None],
        on_list: Callable[[str, tuple[Listed, ...], int], None],
        on_end: Callable[[str, str], None],
    ) -> None:
        self._record = record
        self._on_list = on_list
        self._on_end = on_end
        self._lock = threading.Lock()
        self._current: dict[str, PluginClient] = {}
        self._dialled: set[PluginClient] = set()
        self._streams: list[tuple[PluginClient, threading.Thread]] = []

    def dial(self, resource: str, socket: Path) -> PluginClient:
        """A connection that is not in charge of its resource yet; raises `CallFailed`."""
        client = PluginClient(resource, socket, self._record)
        with self._lock:
            self._dialled.add(client)
        try:
            client.dial()
        except CallFailed:
            self.give_up(client)
            raise
        return client

    def give_up(self, client: PluginClient) -> None:
        with self._lock:
            self._dialled.discard(client)
        client.close()

    def put_in_charge(self, client: PluginClient) -> None:
        resource = client.resource
        with self._lock:
            self._dialled.discard(client)
            self._current[resource] = client
            self._streams = [(one, thread) for one, thread in self._streams if thread.is_alive()]
            thread = client.watch(
                lambda devices, size_bytes: self._on_list(resource, devices, size_bytes),
                lambda reason: self._on_end(resource, reason),
            )
            self._streams.append((client, thread))

    def current(self, resource: str) -> PluginClient | None:
        with self._lock:
            return self._current.get(resource)

    def drop(self, resource: str) -> bool:
        """Disconnect whatever is in charge of a resource; False if nothing is."""
        with self._lock:
            client = self._current.pop(resource, None)
        if client is None:
            return False
        client.close()
        return True

    def close_all(self) -> None:
        with self._lock:
            self._current.clear()
            streams, self._streams = self._streams, []
            clients = {*self._dialled, *(client for client, _ in streams)}
            self._dialled.clear()
        for client in clients:
            client.close()
        for _, thread in streams:
            thread.join()
