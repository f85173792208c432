"""Admission of a pod: scheduling by numbers, then one preference and one Allocate per container.

Pure: `admit` and `start` are generators that yield the calls that a kubelet makes to plugins and
are sent the responses, so sockets and virtual time drive the same logic (`drive`). The texts of
refusals are the kubelet's and the scheduler's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from sim.kubelet.devices import DeviceShortage
from sim.kubelet.pods import Grant, Phase, PodStatus

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Generator, Mapping, Sequence

    from sim.kubelet.devices import Amount, DeviceManager
    from sim.kubelet.pods import Container, Pod

UNEXPECTED = "UnexpectedAdmissionError"
CONFIG_ERROR = "CreateContainerConfigError"
UNSCHEDULABLE = "Unschedulable"


@dataclass(frozen=True, slots=True)
class PreferCall:
    """GetPreferredAllocation for one container; the response is device ids."""

    resource: str
    available: tuple[str, ...]
    must_include: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True)
class AllocateCall:
    """Allocate for one container; the response is a `Grant`, or None if it is empty."""

    pod_uid: str
    container: str
    resource: str
    device_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PreStartCall:
    """PreStartContainer; the response is ignored."""

    resource: str
    device_ids: tuple[str, ...]


PluginCall: TypeAlias = PreferCall | AllocateCall | PreStartCall
Response: TypeAlias = "Sequence[str] | Grant | None"
Result = TypeVar("Result")


class CallFailed(Exception):
    """Thrown into a generator whose call failed; the text is `rpc error: code = ... desc = ...`."""


def drive(
    steps: Generator[PluginCall, Response, Result], call_plugin: Callable[[PluginCall], Response]
) -> Result:
    """Make the calls that `steps` yields, to the end; `call_plugin` may raise `CallFailed`."""
    try:
        call = next(steps)
        while True:
            try:
                response = call_plugin(call)
            except CallFailed as error:
                call = steps.throw(error)
            else:
                call = steps.send(response)
    except StopIteration as end:
        result: Result = end.value
        return result


def does_not_fit(pod: Pod, amounts: Mapping[str, Amount], requested: Mapping[str, int]) -> str:
    """Why the scheduler leaves the pod Pending, or "" if it fits.

    `requested` is what the pods on the node ask for. An unhealthy device in use counts twice, as
    it does in a cluster: it is missing from allocatable, and its pod is still counted.
    """
    for resource, count in pod.requests().items():
        amount = amounts.get(resource)
        allocatable = amount.allocatable if amount else 0
        if requested.get(resource, 0) + count > allocatable:
            return f"0/1 nodes are available: 1 Insufficient {resource}."
    return ""


def admit(
    pod: Pod, manager: DeviceManager, generator: random.Random
) -> Generator[PluginCall, Response, PodStatus]:
    """Refuse a pod, or admit and `start` it; what it holds is in `manager` only if it is admitted.

    Ids go to plugins in random order, as a kubelet's sets do; `generator` makes that repeatable.
    """
    grants: list[Grant] = []
    try:
        for container in pod.containers:
            for resource, count in container.limits.items():
                if count > 0 and manager.is_device_resource(resource):
                    grant = yield from _grant(pod, container, resource, count, manager, generator)
                    grants.append(grant)
    except (CallFailed, DeviceShortage) as error:
        manager.release(pod.uid)
        message = f"Allocate failed due to {error}, which is unexpected"
        return PodStatus(Phase.FAILED, UNEXPECTED, message)
    return (yield from start(grants, manager))


def start(
    grants: Sequence[Grant], manager: DeviceManager
) -> Generator[PluginCall, Response, PodStatus]:
    """Start the containers of an admitted pod: one PreStartContainer for each of its grants.

    Where one fails the pod stays Pending with its grants and can be started again, from the first.
    """
    try:
        for grant in grants:
            if manager.wants_pre_start(grant.resource):
                yield PreStartCall(grant.resource, grant.device_ids)
    except CallFailed as error:
        message = f"device plugin PreStartContainer rpc failed with err: {error}"
        return PodStatus(Phase.PENDING, CONFIG_ERROR, message, tuple(grants))
    return PodStatus(Phase.RUNNING, grants=tuple(grants))


def _grant(
    pod: Pod,
    container: Container,
    resource: str,
    count: int,
    manager: DeviceManager,
    generator: random.Random,
) -> Generator[PluginCall, Response, Grant]:
    available = _shuffled(manager.available(resource, count), generator)
    preferred: Sequence[str] = ()
    if manager.has_preference(resource):
        response = yield PreferCall(resource, available, (), count)
        preferred = () if response is None or isinstance(response, Grant) else response
    device_ids = _shuffled(_choose(available, preferred, count), generator)
    response = yield AllocateCall(pod.uid, container.name, resource, device_ids)
    if not isinstance(response, Grant):
        raise CallFailed(f"no containers return in allocation response {response!r}")
    manager.hold(pod.uid, container.name, resource, device_ids, response.raw)
    return response


def _choose(available: Sequence[str], preferred: Sequence[str], count: int) -> tuple[str, ...]:
    usable = set(available)
    chosen = dict.fromkeys(one for one in preferred if one in usable)
    return tuple(dict.fromkeys((*chosen, *available)))[:count]


def _shuffled(ids: Sequence[str], generator: random.Random) -> tuple[str, ...]:
    return tuple(generator.sample(ids, len(ids)))
