"""Requests of the kubelet, parsed by the protobuf library, and responses that need it anyway."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError, Message

from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.kubelet.proto import pluginregistration_pb2
from gpuplugin.kubelet.protowire import parts
from gpuplugin.rpc import RpcCode, RpcError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_CONTAINERS = 1000
"""Of one request; the kubelet asks for one at a time."""
MAX_IDS = 100_000
"""Of one request; a list that the kubelet takes has fewer devices."""
_LEAST_ID_BYTES = 2
_ID_TAGS = (b"\x0a", b"\x12")
"""The bytes that an id begins with: fields 1 and 2 of a container (see the .proto file)."""

_MANY_BYTES = MAX_IDS * _LEAST_ID_BYTES

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


def _check_counts(data: bytes) -> None:
    """Count before anything is made of it: parsed, an empty message takes a hundred bytes."""
    # Far faster than counting ids, and never below their number.
    at_most = sum(data.count(tag) for tag in _ID_TAGS) if len(data) > _MANY_BYTES else 0
    ids = 0
    for containers, (begin, end) in enumerate(parts(data), 1):
        if containers > MAX_CONTAINERS:
            raise RpcError(RpcCode.RESOURCE_EXHAUSTED, f"more than {MAX_CONTAINERS} containers")
        if at_most > MAX_IDS:
            ids += sum(1 for _ in islice(parts(data, begin, end), MAX_IDS + 1 - ids))
            if ids > MAX_IDS:
                raise RpcError(RpcCode.RESOURCE_EXHAUSTED, f"more than {MAX_IDS} device ids")


def _parse(kind: type[_M], data: bytes) -> _M:
    _check_counts(data)
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        text = f"the request is not a {kind.DESCRIPTOR.full_name}: {error}"
        raise RpcError(RpcCode.INVALID_ARGUMENT, text) from error
    return message
