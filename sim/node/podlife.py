"""The life of a pod, as generators of steps: arrival, admission, its container, deletion. Pure.

A driver carries out each step and sends back its reply; `sim.node.podwork` does so in real time,
`sim.virtual.kubelet` in virtual time. Where the pod is over (its lifetime passed, or it was deleted
by hand) a driver throws `PodOver` instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from sim.gpu.tenancy import TenantSpec
from sim.kubelet.pods import Phase, PodStatus, simple_pod

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from random import Random

    from sim.kubelet.pods import Pod
    from sim.node.scenario import Pods

    Reply: TypeAlias = "PodStatus | Exit | None"
    Life: TypeAlias = "Generator[Step, Reply, None]"

RECREATE_S = 1.0
"""A controller makes another pod this soon after the first one that failed its admission.

The delay is doubled with each one that fails, up to that of a container.
"""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delay before a container that ended is started again, in seconds.

    It is doubled each time up to `longest_s`, and `first_s` again after a container that ran for
    `steady_s`. The defaults are the kubelet's.
    """

    first_s: float = 10.0
    longest_s: float = 300.0
    steady_s: float = 600.0


KUBELET_BACKOFF = Backoff()
INTERACTIVE_BACKOFF = Backoff(1.0, 30.0, 60.0)
"""A tenth of the kubelet's, for `gpuplugin sim up`: restarts can be watched within a minute."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A pod arrives `after_s` after the one before it; `lifetime_s` is None without an end."""

    pod: Pod
    after_s: float
    lifetime_s: float | None


@dataclass(frozen=True, slots=True)
class Admit:
    """Create the pod, or create it again, until it is decided. The reply is its `PodStatus`."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class Live:
    """From now on the pod is over after `lifetime_s`; None: never by itself. No reply."""

    lifetime_s: float | None


@dataclass(frozen=True, slots=True)
class Run:
    """Run a container on the GPU or MIG device of a UUID until it ends. The reply is an `Exit`."""

    uuid: str
    spec: TenantSpec


@dataclass(frozen=True, slots=True)
class Exit:
    """A container ended after `ran_s`; None: it could not be started."""

    ran_s: float | None


@dataclass(frozen=True, slots=True)
class Wait:
    delay_s: float


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete the pod: its devices are free. No reply."""

    pod: Pod


Step: TypeAlias = Admit | Live | Run | Wait | Delete


class PodOver(Exception):
    """Thrown into a life whose pod is over; its container was stopped."""


def arrivals(group: Pods, random: Random) -> Iterator[Arrival]:
    """The pods of a group from its `start_s` on; without end if they arrive at a rate."""
    number = 0
    while group.arrivals_per_hour is not None or number < group.count:
        rate = group.arrivals_per_hour
        after_s = 0.0 if rate is None else random.expovariate(rate / 3600)
        lifetime_s = group.lifetime_s
        if lifetime_s is not None and group.random_lifetime:
            lifetime_s = random.expovariate(1 / lifetime_s)
        pod = simple_pod(f"{group.name}-{number}", {group.resource: group.devices})
        yield Arrival(pod, after_s, lifetime_s)
        number += 1


def pod_life(group: Pods, arrival: Arrival, backoff: Backoff) -> Life:
    """A pod of a scenario, from its arrival to its deletion."""
    delay_s = RECREATE_S
    try:
        while True:
            status = yield Admit(arrival.pod)
            if isinstance(status, PodStatus) and status.phase is Phase.RUNNING:
                break
            yield Wait(delay_s)
            delay_s = min(delay_s * 2, max(RECREATE_S, backoff.longest_s))
        yield Live(arrival.lifetime_s)
        spec = tenant_spec(group, arrival.pod.name)
        yield from container_life(status.uuids[0], spec, backoff, restart=group.restart)
    except PodOver:
        pass
    yield Delete(arrival.pod)


def container_life(uuid: str, spec: TenantSpec, backoff: Backoff, *, restart: bool = True) -> Life:
    """The container of an admitted pod, on a GPU or MIG device: started again after it ended."""
    delay_s = backoff.first_s
    while True:
        exit_ = yield Run(uuid, spec)
        ran_s = exit_.ran_s if isinstance(exit_, Exit) else None
        if ran_s is not None and not restart:
            return
        if ran_s is not None and ran_s >= backoff.steady_s:
            delay_s = backoff.first_s
        yield Wait(delay_s)
        delay_s = min(delay_s * 2, backoff.longest_s)


def tenant_spec(group: Pods, name: str) -> TenantSpec:
    return TenantSpec(name, group.workload, group.memory, group.occupancy, group.mps_share)
