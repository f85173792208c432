"""Pods of a run in virtual time: they come, wait, run, break, begin anew and go."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from sim.gpu.scheduler import to_ns
from sim.gpu.tenancy import TenantSpec
from sim.kubelet.pods import Phase, simple_pod

if TYPE_CHECKING:
    from collections.abc import Generator

    import simpy

    from sim.gpu.tenancy import Tenant
    from sim.node.node import SimulatedNode
    from sim.node.population import Log
    from sim.node.scenario import Pods
    from sim.virtual.kubelet import VirtualKubelet

FIRST_RESTART_S = 10.0
LONGEST_RESTART_S = 300.0
"""A kubelet's back-off for containers that end: doubled each time."""

STEADY_AFTER_S = 600.0
"""A container that ran for this long begins with the first delay again."""

RECREATE_S = 1.0
"""A controller makes another pod this soon after one that failed its admission."""


class VirtualPods:
    """Every pod of the scenario, each a process of its own."""

    def __init__(self, node: SimulatedNode, kubelet: VirtualKubelet, log: Log) -> None:
        self._node = node
        self._kubelet = kubelet
        self._log = log
        self._room = node.env.event()
        self.waiting_ns: list[int] = []
        """How long each pod waited until it had its devices."""
        self.created = 0
        self.refused = 0
        for group in node.scenario.pods:
            node.env.process(self._come(group))

    def something_is_free(self) -> None:
        """Devices came, became healthy, or were given back: who waits may try again."""
        room, self._room = self._room, self._node.env.event()
        room.succeed()

    def _come(self, group: Pods) -> Generator[simpy.Event, object, None]:
        env = self._node.env
        random = Random(f"{self._node.scenario.seed}/pods/{group.name}")
        yield env.timeout(to_ns(group.start_s))
        if group.arrivals_per_hour is None:
            for number in range(group.count):
                env.process(self._live(group, number, self._lifetime_ns(group, random)))
            return
        number = 0
        while True:
            yield env.timeout(to_ns(random.expovariate(group.arrivals_per_hour / 3600)))
            env.process(self._live(group, number, self._lifetime_ns(group, random)))
            number += 1

    def _lifetime_ns(self, group: Pods, random: Random) -> int | None:
        if group.lifetime_s is None:
            return None
        if group.random_lifetime:
            return max(1, to_ns(random.expovariate(1 / group.lifetime_s)))
        return to_ns(group.lifetime_s)

    def _live(
        self, group: Pods, number: int, lifetime_ns: int | None
    ) -> Generator[simpy.Event, object, None]:
        env = self._node.env
        name = f"{group.name}-{number}"
        created_ns, attempt = int(env.now), 0
        self.created += 1
        while True:
            pod = replace(
                simple_pod(name, {group.resource: group.devices}), uid=f"{name}/{attempt}"
            )
            status = self._kubelet.try_to_run(pod, self._node.now_s)
            if status is None:
                yield self._room
            elif status.phase is Phase.RUNNING:
                break
            else:
                self.refused += 1
                self._log("pod", {"pod": name, "phase": "Failed", "message": status.message})
                yield env.timeout(to_ns(RECREATE_S))
                attempt += 1
        self.waiting_ns.append(int(env.now) - created_ns)
        (grant, *_) = status.grants
        self._log("pod", {"pod": name, "phase": "Running", "devices": sorted(grant.device_ids)})
        yield from self._run(group, name, grant.device_ids[0], lifetime_ns)
        self._kubelet.remove(pod)
        self._log("pod", {"pod": name, "phase": "Gone"})
        self.something_is_free()

    def _run(
        self, group: Pods, name: str, device_id: str, lifetime_ns: int | None
    ) -> Generator[simpy.Event, object, None]:
        """The pod's container, again and again, until the pod's life is over."""
        env = self._node.env
        uuid = device_id.partition("::")[0]
        spec = TenantSpec(name, group.workload, group.memory, group.occupancy)
        over = env.event() if lifetime_ns is None else env.timeout(lifetime_ns)
        delay_s = FIRST_RESTART_S
        while not over.processed:
            started_ns = int(env.now)
            tenant = self._node.start_tenant(uuid, spec)
            if tenant is not None:
                yield tenant.gone | over
                if not tenant.gone.triggered:
                    self._stop(uuid, tenant)
                    return
                if not group.restart:
                    return
            if env.now - started_ns >= to_ns(STEADY_AFTER_S):
                delay_s = FIRST_RESTART_S
            yield env.timeout(to_ns(delay_s)) | over
            delay_s = min(delay_s * 2, LONGEST_RESTART_S)

    def _stop(self, uuid: str, tenant: Tenant) -> None:
        for gpu in self._node.present:
            if uuid in gpu.tenancies:
                gpu.tenancies[uuid].kill(tenant.pid, "pod deleted")
