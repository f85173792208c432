"""One node of a fleet in virtual time: GPUs, the plugin's decisions and a kubelet's. No I/O.

It is what `sim.virtual` runs from beginning to end, advanced to the present by whoever keeps it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from gpuplugin.core.gpulabels import NodeFacts, gpu_labels
from gpuplugin.core.nodecondition import GpuReport
from gpuplugin.core.usage import Holding, PodName, Reading, Seen, Work, usage_of
from hal import HalError
from sim.apiserver.rules import quantity
from sim.fleet.pods import PodState
from sim.gpu.scheduler import NS_PER_S, to_ns
from sim.kubelet.pods import Phase
from sim.node.node import SimulatedNode
from sim.node.podlife import KUBELET_BACKOFF, Exit, Run, Wait, container_life
from sim.pods.loads import declared, load_names
from sim.pods.podlist import LOAD
from sim.virtual.doors import PluginDoor
from sim.virtual.kubelet import VirtualKubelet
from sim.virtual.plugin import VirtualPlugin

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from typing import TypeAlias

    import simpy

    from gpuplugin.config.settings import Settings
    from gpuplugin.core.nodeview import NodeView
    from gpuplugin.kubelet.deviceplugin import DevicePlugin
    from hal import Telemetry
    from sim.fleet.objects import Machine, PodAddresses
    from sim.fleet.pods import AskedPod
    from sim.gpu.tenancy import TenantSpec
    from sim.kubelet.devices import Amount
    from sim.node.podlife import Reply, Step
    from sim.node.scenario import Scenario

    Events: TypeAlias = Generator[simpy.Event, object, None]

MACHINE: Final = "gpuplugin-simulated"
"""The type of machine in the labels of its GPUs."""
POD_START_S: Final = 1.0
"""From a pod's binding to its containers' start; assumed: the image is there."""
_START_S = 0.001
"""By then the plugin has opened the driver, and the kubelet has its first lists."""
_CRASHED = "CrashLoopBackOff"
_MOST_REPORTS = 100
"""Of those that nobody takes."""


@dataclass(slots=True)
class _Pod:
    asked: AskedPod
    state: PodState
    stopped: simpy.Event
    uuids: tuple[str, ...] = ()
    health: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))
    released: bool = False
    pid: int | None = None
    """Of its process on a GPU, None while it has none."""


class FleetNode:
    """A node of this name; `number` is its place in the fleet, whose pods share `addresses`.

    `dirty`: its own status has changed; `changed`: the uids of pods whose status has. Whoever
    writes them takes them away.

    Raises:
        ConfigurationMisfit: the configuration does not suit the scenario's GPUs.
    """

    def __init__(
        self,
        name: str,
        number: int,
        scenario: Scenario,
        settings: Settings,
        machine: Machine,
        addresses: PodAddresses,
    ) -> None:
        self.name = name
        self.number = number
        self.dirty = False
        self.changed: set[str] = set()
        self.model = SimulatedNode(scenario, name=name)
        self.kubelet = VirtualKubelet(number)
        self._machine = machine
        self._pods: dict[str, _Pod] = {}
        self._addresses = addresses
        self._reports: list[GpuReport] = []
        self.plugin = VirtualPlugin(self.model, settings, PluginDoor(self._listed), self._noted)
        self.advance(_START_S)

    @property
    def next_s(self) -> float:
        """When something happens next; infinity for never."""
        return self.model.next_s

    def advance(self, now_s: float) -> None:
        """Bring it to the present, in seconds since the fleet began."""
        self.model.advance(now_s)
        # Nobody asks what came of each request of a pod: with them a fleet would grow.
        for record in self.model.records:
            record.forget_requests()
        self.model.records = [one for one in self.model.records if one.ended_ns is None]

    def labels(self) -> Mapping[str, str]:
        """Those of its GPUs, as the plugin writes them; without the time of a start."""
        view, reader = self.plugin.view, self.plugin.reader
        facts = NodeFacts(reader.driver_version(), reader.cuda_version(), MACHINE)
        return gpu_labels(view.gpus, view.plan.inventory, facts)

    def take_reports(self) -> list[GpuReport]:
        """The changes of GPUs' health since it was called last."""
        reports, self._reports = self._reports, []
        return reports

    def amounts(self) -> Mapping[str, Amount]:
        return self.kubelet.amounts(self.model.now_s)

    @property
    def pods(self) -> Mapping[str, tuple[AskedPod, PodState]]:
        """The pods that are here, by uid, until they are deleted."""
        return {uid: (pod.asked, pod.state) for uid, pod in self._pods.items()}

    def pod(self, uid: str) -> tuple[AskedPod, PodState] | None:
        pod = self._pods.get(uid)
        return None if pod is None else (pod.asked, pod.state)

    def health(self, uid: str) -> Mapping[str, bool]:
        """Whether each device of a pod is healthy, by its id."""
        return self._pods[uid].health

    def bind(self, asked: AskedPod, now_s: float) -> None:
        """Admit a pod as a kubelet does, or refuse it; one that is here already stays as it is."""
        if asked.uid in self._pods:
            return
        self.advance(now_s)
        now_s = self.model.now_s
        if asked.before is None:
            state = PodState("Pending", now_s, now_s, now_s)
        else:
            began_s = now_s - (asked.age_s or 0.0)
            state = PodState("Running", began_s, began_s, None, restarts=asked.before.restarts)
        pod = _Pod(asked, state, self.model.env.event())
        self.kubelet.create(asked.pod)
        status = self.kubelet.sync(asked.pod, now_s)
        reason, message = status.reason, status.message
        if status.phase is not Phase.FAILED:
            reason, message = self._out_of(asked)
        self._pods[asked.uid] = pod
        if reason:
            self._release(pod)
            told = f"Pod was rejected: {message}"
            pod.state = replace(
                pod.state, phase="Failed", changed_s=now_s, reason=reason, message=told
            )
        else:
            pod.uuids = status.uuids
            address = self._addresses.take(asked.before.address if asked.before else "")
            pod.state = replace(pod.state, grants=status.grants, address=address)
            pod.health = self._health_of(pod)
            self.model.env.process(self._live(pod))
        self.changed.add(asked.uid)

    def remove(self, uid: str, now_s: float) -> None:
        """The pod is deleted: its containers end, its devices are free."""
        pod = self._pods.pop(uid, None)
        if pod is None:
            return
        self.advance(now_s)
        self.changed.discard(uid)
        self._release(pod)
        if not pod.stopped.triggered:
            pod.stopped.succeed()
        self.model.advance(self.model.now_s)

    def view(self, now_s: float) -> NodeView:
        """What the plugin's metrics are made of, with a reading of this moment."""
        self.advance(now_s)
        now_s = self.model.now_s
        view, reader = self.plugin.view, self.plugin.reader
        telemetry: dict[str, Telemetry] = {}
        work: dict[str, list[Work]] = {}
        by_pid = {pod.pid: _name(pod) for pod in self._pods.values() if pod.pid is not None}
        for gpu in view.gpus:
            try:
                telemetry[gpu.uuid] = reader.telemetry(gpu.uuid)
                found = reader.processes(gpu.uuid)
            except HalError:
                continue  # a GPU that does not respond has no series
            work[gpu.uuid] = [Work(gpu.uuid, one, by_pid.get(one.pid)) for one in found]
        holdings = [
            Holding(_name(pod), grant.container, grant.resource, grant.device_ids)
            for pod in self._pods.values()
            if not pod.released
            for grant in pod.state.grants
        ]
        usage = usage_of(Seen(view.gpus, view.inventory, holdings, telemetry, work))
        reading = Reading(
            at_s=now_s,
            driver=self.model.scenario.driver_version,
            gpus=view.gpus,
            telemetry=telemetry,
            usage=usage,
        )
        return replace(view, reading=reading)

    def unknown_load(self, asked: AskedPod) -> str:
        """What is wrong with the load that a pod declares, empty if nothing is."""
        scenario = self.model.scenario
        if not asked.load or declared(scenario, asked.load, asked.pod.name) is not None:
            return ""
        names = ", ".join(load_names(scenario))
        return f"it is idle: its {LOAD} is {asked.load!r}; there are {names}"

    def _out_of(self, asked: AskedPod) -> tuple[str, str]:
        """Why the node has no room beside its devices: reason and message of a kubelet."""
        machine = self._machine
        here = [one.asked for one in self._pods.values() if one.state.phase in _ALIVE]
        for what, wanted, used, capacity in (
            ("pods", 1, len(here), int(quantity(machine.pods))),
            (
                "cpu",
                asked.cpu_milli,
                sum(one.cpu_milli for one in here),
                int(quantity(machine.cpu) * 1000),
            ),
            (
                "memory",
                asked.memory_bytes,
                sum(one.memory_bytes for one in here),
                int(quantity(machine.memory)),
            ),
        ):
            if wanted and used + wanted > capacity:
                return f"OutOf{what}", (
                    f"Node didn't have enough resource: {what}, requested: {wanted}, "
                    f"used: {used}, capacity: {capacity}"
                )
        return "", ""

    def _live(self, pod: _Pod) -> Events:
        env, asked = self.model.env, pod.asked
        age_s = 0.0
        if asked.before is None:
            yield env.timeout(to_ns(POD_START_S)) | pod.stopped
            if pod.stopped.triggered:
                return
            self._set(pod, phase="Running", started_s=self.model.now_s)
        else:
            age_s = max(0.0, (asked.age_s or 0.0) - POD_START_S)
        over: simpy.Event = pod.stopped
        if asked.duration_s < math.inf:
            over = env.timeout(max(1, to_ns(asked.duration_s - age_s))) | pod.stopped
        spec = declared(self.model.scenario, asked.load, asked.pod.name) if asked.load else None
        if spec is None or not pod.uuids:
            yield over
        else:
            yield from self._work(pod, pod.uuids[0], spec, over)
        if not pod.stopped.triggered:
            succeeded = over.triggered
            self._set(pod, phase="Succeeded" if succeeded else "Failed", waiting="")
            self._release(pod)

    def _work(self, pod: _Pod, uuid: str, spec: TenantSpec, over: simpy.Event) -> Events:
        """Its container works on a GPU until `over`, or until it ended for good."""
        env = self.model.env
        life = container_life(uuid, spec, KUBELET_BACKOFF, restart=pod.asked.restarts)
        step: Step = next(life)
        while True:
            reply: Reply = None
            match step:
                case Run():
                    if pod.state.waiting:
                        restarts = pod.state.restarts + 1
                        now_s = self.model.now_s
                        self._set(pod, waiting="", restarts=restarts, started_s=now_s)
                    began_ns = int(env.now)
                    tenant = self.model.start_tenant(step.uuid, step.spec)
                    reply = Exit(None)
                    if tenant is not None:
                        pod.pid = tenant.pid
                        yield tenant.gone | over
                        pod.pid = None
                        if not tenant.gone.triggered:
                            self.model.stop_tenant(step.uuid, tenant)
                            return
                        reply = Exit((int(env.now) - began_ns) / NS_PER_S)
                case Wait(delay_s=delay_s):
                    crashed = (pod.state.started_s, self.model.now_s)
                    self._set(pod, waiting=_CRASHED, crashed=crashed)
                    yield env.timeout(to_ns(delay_s)) | over
                case _:
                    raise AssertionError(step)
            if over.triggered:
                return
            try:
                step = life.send(reply)
            except StopIteration:
                return

    def _set(self, pod: _Pod, **changes: object) -> None:
        pod.state = replace(pod.state, changed_s=self.model.now_s, **changes)  # type: ignore[arg-type]
        if pod.asked.uid in self._pods:
            self.changed.add(pod.asked.uid)

    def _release(self, pod: _Pod) -> None:
        if not pod.released:
            pod.released = True
            self._addresses.free(pod.state.address)
            self.kubelet.delete(pod.asked.pod, self.model.now_s)

    def _health_of(self, pod: _Pod) -> dict[str, bool]:
        devices = self.kubelet.view(self.model.now_s).devices
        return {
            one: devices.get(grant.resource, {}).get(one, False)
            for grant in pod.state.grants
            for one in grant.device_ids
        }

    def _noted(self, kind: str, facts: dict[str, object]) -> None:
        """Of the plugin's log a fleet keeps changes of health, until they are reported."""
        if kind == "gpu-health":
            uuid, gpu, state = (str(facts[name]) for name in ("uuid", "gpu", "state"))
            reason, action, xid = str(facts["reason"]), str(facts["action"]), facts["xid"]
            code = xid if isinstance(xid, int) else None
            self._reports.append(GpuReport(uuid, gpu, state, reason, action, code))
            del self._reports[:-_MOST_REPORTS]
        self.dirty = True

    def _listed(self, resource: str, plugin: DevicePlugin) -> None:
        self.kubelet.listed(resource, plugin)
        self.dirty = True
        for uid, pod in self._pods.items():
            if pod.state.grants and (health := self._health_of(pod)) != pod.health:
                pod.health = health
                self.changed.add(uid)


def _name(pod: _Pod) -> PodName:
    return PodName(pod.asked.pod.namespace, pod.asked.pod.name)


_ALIVE = ("Pending", "Running")
