"""Calls to device plugins and DRA drivers as messages, and back. No sockets."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias, assert_never

from google.protobuf.message import DecodeError

from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.kubelet.proto import dra_pb2 as dra
from sim.kubelet.admission import AllocateCall, CallFailed, PreferCall, PreStartCall
from sim.kubelet.claims import (
    HEALTH_TIMEOUT_S,
    ClaimAnswer,
    DeviceHealth,
    PrepareCall,
    PreparedDevice,
)
from sim.kubelet.devices import Listed
from sim.kubelet.pods import Grant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sim.kubelet.admission import PluginCall, Response
    from sim.kubelet.claims import Answers, DriverCall
    from sim.kubelet.pods import Health

    Request: TypeAlias = (
        pb.PreferredAllocationRequest | pb.AllocateRequest | pb.PreStartContainerRequest
    )


_MAX_MESSAGE = 1024
_HEALTH: Mapping[int, Health] = {dra.HEALTHY: "Healthy", dra.UNHEALTHY: "Unhealthy"}


def request_for(call: PluginCall) -> tuple[str, Request]:
    match call:
        case PreferCall():
            wanted = pb.ContainerPreferredAllocationRequest(
                available_deviceIDs=call.available,
                must_include_deviceIDs=call.must_include,
                allocation_size=call.size,
            )
            prefer = pb.PreferredAllocationRequest(container_requests=[wanted])
            return "GetPreferredAllocation", prefer
        case AllocateCall():
            container = pb.ContainerAllocateRequest(devices_ids=call.device_ids)
            return "Allocate", pb.AllocateRequest(container_requests=[container])
        case PreStartCall():
            return "PreStartContainer", pb.PreStartContainerRequest(devices_ids=call.device_ids)
        case _:
            assert_never(call)


def response_to(call: PluginCall, data: bytes) -> Response:
    match call:
        case PreferCall():
            preferred = pb.PreferredAllocationResponse.FromString(data).container_responses
            return tuple(preferred[0].deviceIDs) if preferred else ()
        case AllocateCall():
            allocated = pb.AllocateResponse.FromString(data).container_responses
            return _grant(call, allocated[0]) if allocated else None
        case PreStartCall():
            return None
        case _:
            assert_never(call)


def failure_text(code: str, details: str) -> str:
    """The text that Go's library has for a gRPC error; `code` as in `INVALID_ARGUMENT`."""
    go_names = {"OK": "OK", "CANCELLED": "Canceled"}
    name = go_names.get(code) or "".join(word.capitalize() for word in code.split("_"))
    return f"rpc error: code = {name} desc = {details}"


def listed(message: pb.ListAndWatchResponse) -> tuple[Listed, ...]:
    """The devices of a list; any health but "Healthy" is unhealthy, as in the kubelet."""
    return tuple(
        Listed(
            device.ID, device.health == "Healthy", tuple(node.ID for node in device.topology.nodes)
        )
        for device in message.devices
    )


def _grant(call: AllocateCall, granted: pb.ContainerAllocateResponse) -> Grant:
    return Grant(
        container=call.container,
        resource=call.resource,
        device_ids=call.device_ids,
        envs=MappingProxyType(dict(granted.envs)),
        annotations=MappingProxyType(dict(granted.annotations)),
        mounts=tuple(f"{one.host_path}:{one.container_path}" for one in granted.mounts),
        devices=tuple(device.host_path for device in granted.devices),
        cdi_devices=tuple(device.name for device in granted.cdi_devices),
        raw=granted.SerializeToString(),
    )


def driver_request(
    call: DriverCall,
) -> dra.NodePrepareResourcesRequest | dra.NodeUnprepareResourcesRequest:
    claims = [dra.Claim(namespace=one.namespace, name=one.name, uid=one.uid) for one in call.claims]
    if isinstance(call, PrepareCall):
        return dra.NodePrepareResourcesRequest(claims=claims)
    return dra.NodeUnprepareResourcesRequest(claims=claims)


def answers_to(call: DriverCall, data: bytes) -> Answers:
    """A driver's answers by claim UID; raises `CallFailed`."""
    try:
        if isinstance(call, PrepareCall):
            prepared = dra.NodePrepareResourcesResponse.FromString(data).claims
            return {
                uid: ClaimAnswer(one.error, tuple(map(_prepared_device, one.devices)))
                for uid, one in prepared.items()
            }
        undone = dra.NodeUnprepareResourcesResponse.FromString(data).claims
    except DecodeError as error:
        raise CallFailed(failure_text("INTERNAL", str(error))) from error
    return {uid: ClaimAnswer(one.error) for uid, one in undone.items()}


def device_health(message: dra.NodeWatchResourcesResponse) -> tuple[DeviceHealth, ...]:
    return tuple(
        DeviceHealth(
            one.device.pool_name,
            one.device.device_name,
            _HEALTH.get(one.health, "Unknown"),
            one.message[:_MAX_MESSAGE],
            one.health_check_timeout_seconds
            if one.health_check_timeout_seconds > 0
            else HEALTH_TIMEOUT_S,
        )
        for one in message.devices
    )


def _prepared_device(device: dra.Device) -> PreparedDevice:
    return PreparedDevice(
        tuple(device.request_names),
        device.pool_name,
        device.device_name,
        tuple(device.cdi_device_ids),
        device.share_id,
    )
