"""What the kubelet asks, taken apart by the protobuf library, and answers that need it anyway.

Loaded by the first who needs it, or once the kubelet is served: registering needs none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError, Message

from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.kubelet.proto import pluginregistration_pb2
from gpuplugin.rpc.services import RpcCode, RpcError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_M = TypeVar("_M", bound=Message)


def allocate_containers(data: bytes) -> Sequence[pb.ContainerAllocateRequest]:
    """The containers of an AllocateRequest.

    Raises:
        RpcError: it is none.
    """
    return _parse(pb.AllocateRequest, data).container_requests


def answer_preferences(
    data: bytes, prefer: Callable[[pb.ContainerPreferredAllocationRequest], Sequence[str]]
) -> bytes:
    """The answer to a PreferredAllocationRequest, with the ids that `prefer` takes for each.

    Raises:
        RpcError: it is none.
    """
    response = pb.PreferredAllocationResponse()
    answers = response.container_responses
    for container in _parse(pb.PreferredAllocationRequest, data).container_requests:
        answers.add(deviceIDs=prefer(container))
    return response.SerializeToString()


def registration_status(data: bytes) -> tuple[bool, str]:
    """Whether the kubelet took the plugin, and what is wrong with it.

    Raises:
        RpcError: it is no RegistrationStatus.
    """
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
