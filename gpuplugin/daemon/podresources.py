"""Asks the kubelet which container holds which devices: the pod-resources API, version v1.

What is made of the answer is in `core.usage`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from gpuplugin.core.usage import Holding, PodName
from gpuplugin.kubelet.proto import podresources_pb2 as pb
from gpuplugin.kubelet.register import call_reason
from gpuplugin.kubelet.rpc import grpc_target

if TYPE_CHECKING:
    from pathlib import Path

METHOD = "/v1.PodResourcesLister/List"
_MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""The kubelet's own clients allow as much (podresources client.go)."""


class PodResourcesUnavailable(Exception):
    """The kubelet cannot be asked; the text says why and what to do."""


class PodResources:
    """A connection to the kubelet's socket, made when it is first used; calls block."""

    def __init__(self, socket: Path, timeout_s: float) -> None:
        self._socket = socket
        self._timeout_s = timeout_s
        self._channel: grpc.Channel | None = None

    def holdings(self) -> tuple[Holding, ...]:
        """The devices of all containers on the node.

        Raises:
            PodResourcesUnavailable: no socket, no right to it, or no answer in time.
        """
        if self._channel is None:
            _check(self._socket)
            self._channel = grpc.insecure_channel(
                grpc_target(self._socket),
                options=[("grpc.max_receive_message_length", _MAX_ANSWER_BYTES)],
            )
        call = self._channel.unary_unary(
            METHOD,
            pb.ListPodResourcesRequest.SerializeToString,
            pb.ListPodResourcesResponse.FromString,
        )
        try:
            answer = call(pb.ListPodResourcesRequest(), timeout=self._timeout_s)
        except grpc.RpcError as error:
            self.close()  # a kubelet that was restarted is dialled anew at once
            raise PodResourcesUnavailable(f"{self._socket}: {call_reason(error)}") from error
        return tuple(
            Holding(
                PodName(pod.namespace, pod.name),
                container.name,
                devices.resource_name,
                tuple(devices.device_ids),
            )
            for pod in answer.pod_resources
            for container in pod.containers
            for devices in container.devices
        )

    def close(self) -> None:
        """Let go of the connection; the next call makes another."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def _check(socket: Path) -> None:
    """Say plainly what gRPC would only call unavailable."""
    try:
        socket.lstat()
    except OSError as error:
        raise PodResourcesUnavailable(
            f"{socket}: {error.strerror}; mount the folder into the plugin's container, "
            "readable by its user"
        ) from error
