"""Requests of the kubelet, parsed by the protobuf library, and responses that need it anyway."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError, Message

from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.kubelet.proto import pluginregistration_pb2
from gpuplugin.rpc import RpcCode, RpcError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_M = TypeVar("_M", bound=Message)


def allocate_containers(data: bytes) -> Sequence[pb.ContainerAllocateRequest]:
    """The containers of an AllocateRequest; raises `RpcError` if it cannot be parsed."""
    return _parse(pb.AllocateRequest, data).container_requests


def preferred_response(
    data: bytes, prefer: Callable[[pb.ContainerPreferredAllocationRequest], Sequence[str]]
) -> bytes:
    """The response with the ids that `prefer` takes for each container; raises `RpcError`."""
    response = pb.PreferredAllocationResponse()
    containers = response.container_responses
    for container in _parse(pb.PreferredAllocationRequest, data).container_requests:
        containers.add(deviceIDs=prefer(container))
    return response.SerializeToString()


def registration_status(data: bytes) -> tuple[bool, str]:
    """Whether the kubelet registered the plugin, and its error text; raises `RpcError`."""
    status = _parse(pluginregistration_pb2.RegistrationStatus, data)
    return status.plugin_registered, status.error


def _parse(kind: type[_M], data: bytes) -> _M:
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        text = f"the request is not a {kind.DESCRIPTOR.full_name}: {error}"
        raise RpcError(RpcCode.INVALID_ARGUMENT, text) from error
    return message
