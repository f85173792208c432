"""Requests of the kubelet that are not answered from pieces, and the responses to them."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from gpuplugin.kubelet.protowire import NotAMessage, Received, message, parts
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

_INT32_BITS = 32


class PreferenceRequest(NamedTuple):
    """What is asked for one container: a ContainerPreferredAllocationRequest."""

    available: Sequence[str]
    must_include: Sequence[str]
    size: int


def allocate_containers(data: bytes) -> list[list[str]]:
    """The device ids of each container of an AllocateRequest.

    Raises:
        RpcError: it is none, or has too much in it.
    """
    _check_counts(data)
    try:
        return [container.texts(1) for container in Received(data).messages(1)]
    except NotAMessage as error:
        raise _refused("v1beta1.AllocateRequest", error) from error


def preferred_response(data: bytes, prefer: Callable[[PreferenceRequest], Sequence[str]]) -> bytes:
    """The response with the ids that `prefer` takes for each container.

    Raises:
        RpcError: the request is no PreferredAllocationRequest, or has too much in it.
    """
    _check_counts(data)
    try:
        containers = [
            PreferenceRequest(one.texts(1), one.texts(2), _int32(one.number(3)))
            for one in Received(data).messages(1)
        ]
    except NotAMessage as error:
        raise _refused("v1beta1.PreferredAllocationRequest", error) from error
    return b"".join(
        message(1, b"".join(message(1, one.encode()) for one in prefer(container)))
        for container in containers
    )


def registration_status(data: bytes) -> tuple[bool, str]:
    """Whether the kubelet registered the plugin, and its error text; raises `RpcError`."""
    try:
        status = Received(data)
        return bool(status.number(1)), status.text(2)
    except NotAMessage as error:
        raise _refused("pluginregistration.RegistrationStatus", error) from error


def _refused(kind: str, error: NotAMessage) -> RpcError:
    return RpcError(RpcCode.INVALID_ARGUMENT, f"the request is not a {kind}: {error}")


def _int32(value: int) -> int:
    value &= (1 << _INT32_BITS) - 1
    return value - (1 << _INT32_BITS) if value >> (_INT32_BITS - 1) else value


def _check_counts(data: bytes) -> None:
    """Count before anything is made of it: an empty container has two bytes, and takes far more."""
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
