"""A kubelet in virtual time: the device manager and admission of the stand-in, without sockets.

Calls to the plugin are calls of its handlers, with the same bytes as over a socket.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING

from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.rpc.services import RpcError
from sim.kubelet.admission import (
    AllocateCall,
    Answer,
    Call,
    CallFailed,
    PreferCall,
    admit,
    does_not_fit,
)
from sim.kubelet.devices import DeviceManager, Listed
from sim.kubelet.pods import Grant, Phase

if TYPE_CHECKING:
    from collections.abc import Generator

    from gpuplugin.kubelet.deviceplugin import DevicePlugin
    from sim.kubelet.devices import Amount
    from sim.kubelet.pods import Pod, PodStatus


class VirtualKubelet:
    """Devices and pods of a node; the order of device ids is decided by `seed`."""

    def __init__(self, seed: int) -> None:
        self.manager = DeviceManager()
        self._random = Random(f"kubelet/{seed}")
        self._plugins: dict[str, DevicePlugin] = {}
        self._requested: Counter[str] = Counter()
        self._admitted: dict[str, Pod] = {}
        self.list_updates = 0

    def listed(self, resource: str, plugin: DevicePlugin) -> None:
        """A list came from the plugin of a resource."""
        if resource not in self._plugins:
            self.manager.connected(resource, has_preference=True, wants_pre_start=False)
        self._plugins[resource] = plugin
        stream = plugin.devices.subscribe(lambda: None)
        message = pb.ListAndWatchResponse.FromString(stream.take() or b"")
        stream.close()
        self.list_updates += 1
        self.manager.listed(
            resource,
            [
                Listed(
                    device.ID,
                    device.health == "Healthy",
                    tuple(node.ID for node in device.topology.nodes),
                )
                for device in message.devices
            ],
        )

    def amounts(self, now_s: float) -> dict[str, Amount]:
        """Capacity and allocatable by resource."""
        return self.manager.amounts(now_s)

    def try_to_run(self, pod: Pod, now_s: float) -> PodStatus | None:
        """Admit a pod if the scheduler would send it here; None if it has to wait."""
        if does_not_fit(pod, self.amounts(now_s), self._requested):
            return None
        status = self._drive(admit(pod, self.manager, self._random))
        if status.phase is Phase.RUNNING:
            self._requested.update(pod.requests())
            self._admitted[pod.uid] = pod
        return status

    def remove(self, pod: Pod) -> None:
        """A pod is gone: its devices are free."""
        self.manager.release(pod.uid)
        if self._admitted.pop(pod.uid, None) is not None:
            self._requested.subtract(pod.requests())

    def _drive(self, admission: Generator[Call, Answer, PodStatus]) -> PodStatus:
        try:
            call = next(admission)
            while True:
                try:
                    answer = self._perform(call)
                except CallFailed as error:
                    call = admission.throw(error)
                else:
                    call = admission.send(answer)
        except StopIteration as end:
            status: PodStatus = end.value
            return status

    def _perform(self, call: Call) -> Answer:
        plugin = self._plugins[call.resource]
        try:
            if isinstance(call, PreferCall):
                return self._prefer(plugin, call)
            if isinstance(call, AllocateCall):
                return self._allocate(plugin, call)
        except RpcError as error:
            raise CallFailed(
                f"rpc error: code = {error.code.name} desc = {error.message}"
            ) from error
        return None

    def _prefer(self, plugin: DevicePlugin, call: PreferCall) -> tuple[str, ...]:
        request = pb.PreferredAllocationRequest(
            container_requests=[
                pb.ContainerPreferredAllocationRequest(
                    available_deviceIDs=call.available,
                    must_include_deviceIDs=call.must_include,
                    allocation_size=call.size,
                )
            ]
        )
        answer = plugin.preferred_allocation(request.SerializeToString())
        (chosen,) = pb.PreferredAllocationResponse.FromString(answer).container_responses
        return tuple(chosen.deviceIDs)

    def _allocate(self, plugin: DevicePlugin, call: AllocateCall) -> Grant:
        request = pb.AllocateRequest(
            container_requests=[pb.ContainerAllocateRequest(devices_ids=call.device_ids)]
        )
        answer = plugin.allocate(request.SerializeToString())
        (granted,) = pb.AllocateResponse.FromString(answer).container_responses
        return Grant(
            container=call.container,
            resource=call.resource,
            device_ids=call.device_ids,
            envs=dict(granted.envs),
            raw=granted.SerializeToString(),
        )
