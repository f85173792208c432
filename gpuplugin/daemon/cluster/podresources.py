"""Asks the kubelet which container holds which devices: the pod-resources API, version v1.

What is made of the answer is in `core.usage`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from gpuplugin.core.usage import Holding, PodName
from gpuplugin.kubelet.proto import podresources_pb2 as pb
from gpuplugin.rpc.client import CallFailed, unary_call

if TYPE_CHECKING:
    from pathlib import Path

METHOD = "/v1.PodResourcesLister/List"
_MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""The kubelet's own clients allow as much (podresources client.go)."""


class PodResourcesUnavailable(Exception):
    """The kubelet cannot be asked; the text says why and what to do."""


class PodResources:
    """Asks at the kubelet's socket; every call has a connection of its own, and blocks."""

    def __init__(self, socket: Path, timeout_s: float) -> None:
        self._socket = socket
        self._timeout_s = timeout_s

    def holdings(self) -> tuple[Holding, ...]:
        """The devices of all containers on the node.

        Raises:
            PodResourcesUnavailable: no socket, no right to it, or no answer in time.
        """
        _check(self._socket)
        request = pb.ListPodResourcesRequest().SerializeToString()
        try:
            data = unary_call(self._socket, METHOD, request, self._timeout_s, _MAX_ANSWER_BYTES)
            answer = pb.ListPodResourcesResponse.FromString(data)
        except (CallFailed, DecodeError) as error:
            raise PodResourcesUnavailable(f"{self._socket}: {error}") from error
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


def _check(socket: Path) -> None:
    """Say plainly what gRPC would only call unavailable."""
    try:
        socket.lstat()
    except OSError as error:
        raise PodResourcesUnavailable(
            f"{socket}: {error.strerror}; mount the folder into the plugin's container, "
            "readable by its user"
        ) from error
