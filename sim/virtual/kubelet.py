"""The kubelet stand-in and its pods in virtual time: drivers of `KubeletModel` and `pod_life`.

Calls to the plugin are calls of its handlers, with the same bytes as over a socket.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, assert_never

from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.kubelet.proto import dra_pb2 as dra
from gpuplugin.rpc.services import RpcError
from sim.gpu.scheduler import NS_PER_S, to_ns
from sim.kubelet.admission import AllocateCall, CallFailed, PreferCall, PreStartCall, drive
from sim.kubelet.claims import DriverMissing, PrepareCall, drive_calls
from sim.kubelet.devices import Amount
from sim.kubelet.messages import (
    answers_to,
    device_health,
    driver_request,
    failure_text,
    listed,
    request_for,
    response_to,
)
from sim.kubelet.model import KubeletModel
from sim.kubelet.pods import Phase
from sim.node.podlife import (
    KUBELET_BACKOFF,
    Admit,
    Delete,
    Exit,
    Live,
    PodOver,
    Run,
    Wait,
    arrivals,
    pod_life,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import TypeAlias

    import simpy

    from gpuplugin.kubelet.deviceplugin import DevicePlugin
    from gpuplugin.kubelet.draplugin import DraPlugin
    from sim.kubelet.admission import PluginCall, Response
    from sim.kubelet.claims import Answers, DriverCall
    from sim.kubelet.pods import NodeView, Pod, PodStatus
    from sim.node.node import SimulatedNode
    from sim.node.podlife import Arrival, Reply, Step
    from sim.node.population import Log
    from sim.node.scenario import Pods
    from sim.scheduler.claims import ClaimScheduler

    Events: TypeAlias = Generator[simpy.Event, object, None]


class VirtualKubelet:
    """Devices, claims and pods of a node; the order of device ids is decided by `seed`.

    With a `scheduler` its pods may have claims; `wake` is then called with the time at which `work`
    is to be called.
    """

    def __init__(
        self,
        seed: int,
        scheduler: ClaimScheduler | None = None,
        wake: Callable[[float], None] = lambda _at_s: None,
    ) -> None:
        self._model = KubeletModel(Random(f"kubelet/{seed}"), scheduler)
        self._scheduler = scheduler
        self._wake = wake
        self._woken_s = math.inf
        self._plugins: dict[str, DevicePlugin] = {}
        self._driver: DraPlugin | None = None
        if scheduler is not None:
            self._model.restarted(None, 0.0)
            self.work(0.0)

    @property
    def list_updates(self) -> int:
        return self._model.list_updates

    def listed(self, resource: str, plugin: DevicePlugin) -> None:
        if resource not in self._plugins:
            self._model.registered(resource, has_preference=True, wants_pre_start=False)
        self._plugins[resource] = plugin
        stream = plugin.devices.subscribe(lambda: None)
        data = stream.take() or b""
        stream.close()
        message = pb.ListAndWatchResponse.FromString(data)
        self._model.listed(resource, listed(message), len(data))
        self._model.take_effects()

    def register(self, driver: str, plugin: DraPlugin, now_s: float) -> None:
        """Find a DRA driver, as the plugin watcher does."""
        self._driver = plugin
        self._model.driver_registered(driver, driver, now_s)

    def health_received(self, driver: str, message: bytes, now_s: float) -> None:
        devices = device_health(dra.NodeWatchResourcesResponse.FromString(message))
        self._model.claims.health_received(driver, devices, now_s)

    def work(self, now_s: float) -> None:
        """Do what is due for claims and slices."""
        if now_s >= self._woken_s:
            self._woken_s = math.inf
        self._model.tick(now_s)
        while due := self._model.due(now_s):
            for key in due:
                drive_calls(self._model.claim_work(key, lambda: now_s), self._call_driver)
        self._model.take_effects()
        if (due_s := self._model.next_due_s) < self._woken_s:
            self._woken_s = due_s
            self._wake(due_s)

    def amounts(self, now_s: float) -> dict[str, Amount]:
        """By resource, and with claims by driver: shares, and those without a taint."""
        amounts = self._model.devices.amounts(now_s)
        for one in self._scheduler.offered() if self._scheduler is not None else ():
            before = amounts.get(one.driver, Amount(0, 0))
            usable = 0 if one.taints else one.shares
            amounts[one.driver] = Amount(before.capacity + one.shares, before.allocatable + usable)
        return amounts

    def view(self, now_s: float) -> NodeView:
        return self._model.view(now_s)

    def create(self, pod: Pod) -> None:
        self._model.create(pod, pod.key)

    def sync(self, pod: Pod, now_s: float) -> PodStatus:
        """Take a pending pod a step further: see `KubeletModel.sync`. Raises `KeyError`."""
        if pod.key in self._model.pending:
            drive(self._model.sync(pod.key, now_s), self._call)
        self.work(now_s)
        return self._model.status(pod.key)

    def delete(self, pod: Pod, now_s: float) -> None:
        self._model.delete(pod.key, now_s)
        self.work(now_s)

    def _call(self, call: PluginCall) -> Response:
        plugin = self._plugins[call.resource]
        data = request_for(call)[1].SerializeToString()
        try:
            match call:
                case PreferCall():
                    return response_to(call, plugin.preferred_allocation(data))
                case AllocateCall():
                    return response_to(call, plugin.allocate(data))
                case PreStartCall():
                    return None
                case _:
                    assert_never(call)
        except RpcError as error:
            raise CallFailed(failure_text(error.code.name, error.message)) from error

    def _call_driver(self, call: DriverCall) -> Answers:
        if self._driver is None:
            raise DriverMissing(call.driver)
        handler = self._driver.prepare if isinstance(call, PrepareCall) else self._driver.unprepare
        return answers_to(call, handler(driver_request(call).SerializeToString()))


@dataclass(slots=True)
class PodNotes:
    """When a pod came, and when it had its devices (None: never); `refused`: failed admissions."""

    name: str
    came_ns: int
    placed_ns: int | None = None
    refused: int = 0


class VirtualPods:
    """Every pod of the scenario, each a process of its own."""

    def __init__(self, node: SimulatedNode, kubelet: VirtualKubelet, log: Log) -> None:
        self._node = node
        self._kubelet = kubelet
        self._log = log
        self._room = node.env.event()
        self.notes: list[PodNotes] = []
        for group in node.scenario.pods:
            node.env.process(self._arrive(group))

    def something_is_free(self) -> None:
        """Devices came, became healthy, or were released: pods that wait may try again."""
        room, self._room = self._room, self._node.env.event()
        room.succeed()

    def _arrive(self, group: Pods) -> Events:
        env = self._node.env
        random = Random(f"{self._node.scenario.seed}/pods/{group.name}")
        yield env.timeout(to_ns(group.start_s))
        for arrival in arrivals(group, random):
            if arrival.after_s:
                yield env.timeout(to_ns(arrival.after_s))
            env.process(self._live(group, arrival))

    def _live(self, group: Pods, arrival: Arrival) -> Events:
        env = self._node.env
        life = pod_life(group, arrival, KUBELET_BACKOFF)
        notes = PodNotes(arrival.pod.name, int(env.now))
        self.notes.append(notes)
        over, admitted = env.event(), False
        step: Step = next(life)
        while True:
            reply: Reply = None
            is_over = False
            match step:
                case Admit(pod=pod):
                    reply = yield from self._admit(pod, notes)
                case Live(lifetime_s=lifetime_s):
                    notes.placed_ns = int(env.now)
                    admitted = True
                    if lifetime_s is not None:
                        over = env.timeout(max(1, to_ns(lifetime_s)))
                case Run():
                    reply = yield from self._run(step, over)
                    is_over = reply is None
                case Wait(delay_s=delay_s):
                    pause = env.timeout(to_ns(delay_s))
                    yield pause | over if admitted else pause
                    is_over = over.processed
                case Delete(pod=pod):
                    self._kubelet.delete(pod, self._node.now_s)
                    self._log("pod", {"pod": pod.name, "phase": "Gone"})
                    self.something_is_free()
                case _:
                    assert_never(step)
            try:
                step = life.throw(PodOver()) if is_over else life.send(reply)
            except StopIteration:
                return

    def _admit(self, pod: Pod, notes: PodNotes) -> Generator[simpy.Event, object, PodStatus]:
        self._kubelet.create(pod)
        while True:
            status = self._kubelet.sync(pod, self._node.now_s)
            if status.phase is not Phase.PENDING:
                break
            yield self._room
        facts: dict[str, object] = {"pod": pod.name, "phase": status.phase.value}
        if status.phase is Phase.FAILED:
            notes.refused += 1
            self._kubelet.delete(pod, self._node.now_s)
            self._log("pod", {**facts, "message": status.message})
        else:
            self._log("pod", {**facts, "devices": _devices(status)})
        return status

    def _run(self, step: Run, over: simpy.Event) -> Generator[simpy.Event, object, Exit | None]:
        """Run a container; None if the pod was over before it ended."""
        env = self._node.env
        started_ns = int(env.now)
        tenant = self._node.start_tenant(step.uuid, step.spec)
        if tenant is None:
            return Exit(None)
        yield tenant.gone | over
        if not tenant.gone.triggered:
            self._node.stop_tenant(step.uuid, tenant)
            return None
        return Exit((int(env.now) - started_ns) / NS_PER_S)


def _devices(status: PodStatus) -> list[str]:
    granted = (one for grant in status.grants[:1] for one in grant.device_ids)
    return sorted((*granted, *(one.device for one in status.devices)))
