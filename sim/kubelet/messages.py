"""Calls of an admission as device-plugin messages, and back. No sockets."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias, assert_never

from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from sim.kubelet.admission import AllocateCall, PreferCall, PreStartCall
from sim.kubelet.devices import Listed
from sim.kubelet.pods import Grant

if TYPE_CHECKING:
    from sim.kubelet.admission import PluginCall, Response

    Request: TypeAlias = (
        pb.PreferredAllocationRequest | pb.AllocateRequest | pb.PreStartContainerRequest
    )


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
