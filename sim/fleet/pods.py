"""Pods of a fleet's nodes: what the API server says of them, and what a kubelet writes. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from gpuplugin.config.values import parse_duration_s
from gpuplugin.core.jsonobject import JsonObject, objects, part
from sim.apiserver.rules import quantity
from sim.fleet.objects import address, seconds
from sim.kubelet.pods import Container, Pod
from sim.pods.podlist import LOAD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sim.kubelet.pods import Grant

DURATION: Final = "gpuplugin.dev/duration"
"""An annotation: the pod's containers end with success after it, such as `30s`."""
PodPhase: TypeAlias = Literal["Pending", "Running", "Succeeded", "Failed"]
_ENDED = ("Succeeded", "Failed")
_USUAL = ("cpu", "memory", "ephemeral-storage")


@dataclass(frozen=True, slots=True)
class Written:
    """What the status of a pod that runs says, by an earlier run of the fleet: it stays."""

    started: str
    since: str
    """When it became ready."""
    address: str
    restarts: int


@dataclass(frozen=True, slots=True)
class AskedPod:
    """A pod that is bound to a node; `before` if it ran when the fleet began, with its age.

    `cpu_milli` and `memory_bytes` are what it requests; `duration_s` is infinite without an end.
    `note` is what is wrong about its annotations.
    """

    pod: Pod
    node: str
    images: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    cpu_milli: int = 0
    memory_bytes: int = 0
    load: str = ""
    duration_s: float = math.inf
    restarts: bool = True
    deleted: bool = False
    ended: bool = False
    age_s: float | None = None
    before: Written | None = None
    note: str = ""

    @property
    def uid(self) -> str:
        return self.pod.uid


@dataclass(frozen=True, slots=True)
class PodState:
    """Where a pod on a node stands; times are in seconds since the fleet began.

    It was admitted at `began_s`, its containers were last started at `started_s`, and `crashed` is
    when those before them started and ended. `waiting` is why they do not run now, empty if they
    do. `changed_s` is None while it is as it was written before.
    """

    phase: PodPhase
    began_s: float
    started_s: float
    changed_s: float | None
    address: str = ""
    reason: str = ""
    message: str = ""
    waiting: str = ""
    restarts: int = 0
    crashed: tuple[float, float] | None = None
    grants: tuple[Grant, ...] = ()


def asked_pod(body: JsonObject, now: datetime) -> AskedPod:
    """A pod as the API server has it."""
    metadata, spec, status = (part(body, one) for one in ("metadata", "spec", "status"))
    annotations, labels = part(metadata, "annotations"), part(metadata, "labels")
    containers = objects(spec.get("containers"))
    requests = [_requests(one) for one in containers]
    duration_s, note = math.inf, ""
    if text := str(annotations.get(DURATION) or ""):
        try:
            duration_s = parse_duration_s(text)
        except ValueError as error:
            note = f"its {DURATION} {text!r} {error}: it runs without an end"
    return AskedPod(
        pod=Pod(
            name=str(metadata.get("name")),
            containers=tuple(_container(one) for one in containers),
            namespace=str(metadata.get("namespace")),
            uid=str(metadata.get("uid")),
            static=True,
        ),
        node=str(spec.get("nodeName") or ""),
        images={str(one.get("name")): str(one.get("image") or "") for one in containers},
        cpu_milli=sum(_number(one.get("cpu"), 1000) for one in requests),
        memory_bytes=sum(_number(one.get("memory"), 1) for one in requests),
        load=str(annotations.get(LOAD) or labels.get(LOAD) or "").strip(),
        duration_s=duration_s,
        restarts=spec.get("restartPolicy") != "Never",
        deleted=bool(metadata.get("deletionTimestamp")),
        ended=status.get("phase") in _ENDED,
        age_s=_age_s(status, now),
        before=_written(status),
        note=note,
    )


def pod_status(
    asked: AskedPod, state: PodState, node_number: int, began: datetime, health: Mapping[str, bool]
) -> JsonObject:
    """What a kubelet writes; `health` is by device id, `began` the fleet's beginning."""

    def at(time_s: float) -> str:
        return seconds(began + timedelta(seconds=time_s))

    host, before = address(node_number), asked.before
    began_at = before.started if before else at(state.began_s)
    changed = before.since if before and state.changed_s is None else at(state.changed_s or 0.0)
    status: JsonObject = {"phase": state.phase, "startTime": began_at}
    if state.reason:
        status |= {"reason": state.reason, "message": state.message}
    if state.phase == "Failed" and state.reason:
        return {"status": status}
    running = state.phase == "Running"
    ready = "True" if running and not state.waiting else "False"
    truths = {
        "PodReadyToStartContainers": "True" if running else "False",
        "Initialized": "True",
        "Ready": ready,
        "ContainersReady": ready,
        "PodScheduled": "True",
    }
    status["conditions"] = [
        {"type": kind, "status": truth, "lastTransitionTime": changed}
        | (_why_not(asked, state) if truth == "False" else {"reason": None, "message": None})
        for kind, truth in truths.items()
    ]
    status |= {"hostIP": host, "hostIPs": [{"ip": host}]}
    if running:
        own = state.address
        status |= {"podIP": own, "podIPs": [{"$patch": "replace"}, {"ip": own}]}
    status["containerStatuses"] = [
        _container_status(asked, state, container.name, at, health)
        for container in asked.pod.containers
    ]
    return {"status": status}


def _why_not(asked: AskedPod, state: PodState) -> JsonObject:
    """Why it is not ready, in a kubelet's words (1.36, pkg/kubelet/status/generate.go)."""
    if state.phase in _ENDED:
        return {"reason": "PodCompleted" if state.phase == "Succeeded" else "PodFailed"}
    names = " ".join(container.name for container in asked.pod.containers)
    return {
        "reason": "ContainersNotReady",
        "message": f"containers with unready status: [{names}]",
    }


def _container_status(
    asked: AskedPod,
    state: PodState,
    name: str,
    at: Callable[[float], str],
    health: Mapping[str, bool],
) -> JsonObject:
    def terminated(code: int, reason: str, times_s: tuple[float, float], number: int) -> JsonObject:
        return {
            "exitCode": code,
            "reason": reason,
            "containerID": _container_id(asked, name, number),
            "startedAt": at(times_s[0]),
            "finishedAt": at(times_s[1]),
        }

    last: JsonObject = {}
    if state.crashed is not None:
        # That of the container now, until it is started again.
        number = state.restarts if state.waiting else state.restarts - 1
        last = {"terminated": terminated(1, "Error", state.crashed, number)}
    match state.phase:
        case "Succeeded" | "Failed":
            code, reason = (0, "Completed") if state.phase == "Succeeded" else (1, "Error")
            times_s = (state.started_s, state.changed_s or state.started_s)
            current: JsonObject = {"terminated": terminated(code, reason, times_s, state.restarts)}
        case "Running" if not state.waiting:
            current = {"running": {"startedAt": at(state.started_s)}}
        case _:
            current = {"waiting": {"reason": state.waiting or "ContainerCreating"}}
    is_running = "running" in current
    return {
        "name": name,
        "image": asked.images.get(name, ""),
        "imageID": "",
        "containerID": ""
        if "waiting" in current and not last
        else _container_id(asked, name, state.restarts),
        "ready": is_running,
        "started": is_running,
        "restartCount": state.restarts,
        "state": current,
        "lastState": last,
        "allocatedResourcesStatus": list(_resources(state.grants, name, health)),
    }


def _container_id(asked: AskedPod, name: str, number: int) -> str:
    return f"gpuplugin-sim://{asked.uid}-{name}-{number}"


def _resources(
    grants: Iterable[Grant], container: str, health: Mapping[str, bool]
) -> Iterable[JsonObject]:
    for grant in grants:
        if grant.container == container:
            yield {
                "name": grant.resource,
                "resources": [
                    {"resourceID": one, "health": "Healthy" if health.get(one) else "Unhealthy"}
                    for one in grant.device_ids
                ],
            }


def _container(body: JsonObject) -> Container:
    limits = part(part(body, "resources"), "limits")
    counts = {
        name: _number(value, 1) for name, value in limits.items() if "/" in name
    }  # extended resources have a domain
    return Container(str(body.get("name")), MappingProxyType(counts))


def _requests(container: JsonObject) -> JsonObject:
    """What a container requests; what it only limits it requests as well."""
    resources = part(container, "resources")
    wanted = {**part(resources, "limits"), **part(resources, "requests")}
    return {name: value for name, value in wanted.items() if name in _USUAL}


def _number(value: object, parts: int) -> int:
    try:
        return math.ceil(quantity(str(value)) * parts) if value is not None else 0
    except ValueError:
        return 0


def _written(status: JsonObject) -> Written | None:
    if status.get("phase") != "Running":
        return None
    started = str(status.get("startTime") or "")
    conditions = {one.get("type"): one for one in objects(status.get("conditions"))}
    ready = conditions.get("Ready", {})
    containers = objects(status.get("containerStatuses"))
    counts = [one.get("restartCount") for one in containers]
    return Written(
        started,
        str(ready.get("lastTransitionTime") or started),
        str(status.get("podIP") or ""),
        max((count for count in counts if isinstance(count, int)), default=0),
    )


def _age_s(status: JsonObject, now: datetime) -> float | None:
    started = status.get("startTime")
    if status.get("phase") != "Running" or not isinstance(started, str):
        return None
    try:
        return max(0.0, (now - datetime.fromisoformat(started)).total_seconds())
    except ValueError:
        return None
