"""Pods from manifests and short forms, and the control socket of a running kubelet stand-in."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpuplugin.config.document import parse_documents
from gpuplugin.config.loaded import ConfigError, Problem
from gpuplugin.config.problems import checked, misspelt
from gpuplugin.linesocket import ControlError
from sim.kubelet.pods import Container, Pod, PodClaim
from sim.kubeletsocket import (
    DECISION_TIMEOUT_S,
    ManifestError,
    kubelet_control_socket,
    whole,
)
from sim.lineserver import LineServer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuplugin.config.document import Document
    from sim.kubelet.kubelet import Kubelet
    from sim.kubelet.pods import NodeView, PodView


class _Loose(BaseModel):
    """Manifests hold much that a device manager never looks at."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _ClaimUse(_Loose):
    name: str
    request: str = ""


class _Resources(_Loose):
    limits: dict[str, object] = Field(default_factory=dict)
    claims: list[_ClaimUse] = []


class _Container(_Loose):
    name: str
    resources: _Resources = _Resources()


class _Metadata(_Loose):
    name: str
    namespace: str = "default"


class _PodClaim(_Loose):
    name: str
    resource_claim_name: str = Field("", alias="resourceClaimName")
    template_name: str = Field("", alias="resourceClaimTemplateName")


class _Spec(_Loose):
    containers: list[_Container]
    resource_claims: list[_PodClaim] = Field([], alias="resourceClaims")


class _Manifest(_Loose):
    kind: str
    metadata: _Metadata
    spec: _Spec


def pods_from_yaml(text: str, name: str = "the manifest") -> tuple[Pod, ...]:
    """The pods of a (multi-document) YAML text; raises `ManifestError` for anything else."""
    try:
        return tuple(_pod(document) for document in parse_documents(text, name))
    except ConfigError as error:
        raise ManifestError(f"not a Pod manifest:\n{error}") from error


def _pod(document: Document) -> Pod:
    kind = document.data.get("kind")
    if kind != "Pod":
        where = document.where(("kind",))
        problem = f"only Pods can be run, found kind {kind!r}; make a Pod of its template"
        raise ConfigError([Problem(where, "", problem if kind else "is no Pod: kind is missing")])
    wrong = tuple(misspelt(document, _Manifest))
    try:
        manifest = checked(document, _Manifest)
    except ConfigError as error:
        raise ConfigError((*error.problems, *wrong)) from None
    if wrong:
        raise ConfigError(wrong)
    return Pod(
        name=manifest.metadata.name,
        namespace=manifest.metadata.namespace,
        containers=tuple(
            Container(
                container.name,
                MappingProxyType(_device_limits(container.resources.limits)),
                tuple(
                    f"{use.name}/{use.request}" if use.request else use.name
                    for use in container.resources.claims
                ),
            )
            for container in manifest.spec.containers
        ),
        claims=tuple(
            PodClaim(one.name, one.resource_claim_name, one.template_name)
            for one in manifest.spec.resource_claims
        ),
    )


def _device_limits(limits: Mapping[str, object]) -> dict[str, int]:
    """Extended resources only: their names have a slash and their amounts are whole numbers."""
    counts: dict[str, int] = {}
    for name, amount in limits.items():
        if "/" in name:
            count = whole(amount)
            if count is None:
                raise ManifestError(f"the limit of {name} must be a whole number, 0 or more")
            counts[name] = count
    return counts


class _Request(BaseModel):
    """One request; `command` says which of the other fields count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str
    name: str = ""
    limits: dict[str, int] = {}
    containers: int = 1
    static: bool = False
    resource: str = ""
    count: int = 0
    timeout_s: float = 0.0


def serve_kubelet_control(kubelet: Kubelet) -> LineServer:
    def handle(request: Mapping[str, object]) -> Mapping[str, object]:
        try:
            return _handle(kubelet, _Request.model_validate(request))
        except ValidationError as error:
            raise ControlError(f"not a request: {error}") from error
        except (TimeoutError, ValueError) as error:
            raise ControlError(str(error)) from error
        except KeyError as error:
            raise ControlError(f"there is no pod {error}") from error

    return LineServer(kubelet_control_socket(kubelet.dir), handle)


def _handle(kubelet: Kubelet, request: _Request) -> Mapping[str, object]:
    match request.command:
        case "create":
            limits = request.limits
            containers = tuple(
                Container(f"c{number}", limits) for number in range(request.containers)
            )
            pod = Pod(request.name, containers, static=request.static)
            kubelet.run_pod(pod, DECISION_TIMEOUT_S)
            return pod_as_json(kubelet.view().pods[pod.key])
        case "delete":
            kubelet.delete_pod(request.name)
        case "wait":
            kubelet.wait_until(
                lambda node: node.allocatable(request.resource) == request.count, request.timeout_s
            )
        case "restart":
            kubelet.restart()
        case "view":
            pass
        case unknown:
            raise ControlError(f"unknown command {unknown!r}")
    return node_as_json(kubelet.view())


def node_as_json(node: NodeView) -> dict[str, object]:
    return {
        "resources": {
            name: {
                "capacity": amount.capacity,
                "allocatable": amount.allocatable,
                "unhealthy": list(node.unhealthy(name)),
                "list_updates": node.list_updates.get(name, 0),
            }
            for name, amount in node.amounts.items()
        },
        "drivers": {name: list(endpoints) for name, endpoints in node.drivers.items()},
        "offered": [
            {
                "driver": one.driver,
                "device": one.name,
                "uuid": one.uuid,
                "shares": one.shares,
                "taken": one.taken,
                "taints": list(one.taints),
            }
            for one in node.offered
        ],
        "pods": [pod_as_json(view) for view in node.pods.values()],
    }


def pod_as_json(view: PodView) -> dict[str, object]:
    status = view.status
    return {
        "name": view.pod.name,
        "namespace": view.pod.namespace,
        "phase": status.phase.value,
        "reason": status.reason,
        "message": status.message,
        "grants": [
            {
                "container": grant.container,
                "resource": grant.resource,
                "device_ids": list(grant.device_ids),
                "envs": dict(grant.envs),
                "annotations": dict(grant.annotations),
                "mounts": list(grant.mounts),
                "devices": list(grant.devices),
                "cdi_devices": list(grant.cdi_devices),
            }
            for grant in status.grants
        ],
        "devices": [
            {
                "containers": list(one.containers),
                "claim": one.claim,
                "request": one.request,
                "driver": one.driver,
                "device": one.device,
                "share_id": one.share_id,
                "uuid": one.uuid,
                "cdi_devices": list(one.cdi_devices),
            }
            for one in status.devices
        ],
    }
