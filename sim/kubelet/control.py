"""Steering a running kubelet stand-in from another process: pods, the node, a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from gpuplugin.linesocket import ControlError, ask
from sim.kubelet.pods import Container, Pod
from sim.node.lineserver import LineServer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sim.kubelet.kubelet import Kubelet
    from sim.kubelet.view import NodeView, PodView

DECISION_TIMEOUT_S = 30.0


def kubelet_control_socket(kubelet_dir: Path) -> Path:
    """Where the stand-in of this folder listens."""
    return kubelet_dir / "sim-kubelet.sock"


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
    """Listen for requests to `kubelet` until the server is closed."""

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


def ask_kubelet(
    kubelet_dir: Path, answer_within_s: float = DECISION_TIMEOUT_S, **request: object
) -> Mapping[str, object]:
    """Send a request to the stand-in of a folder.

    Raises:
        ControlError: it does not run there, or it refused.
    """
    return ask(kubelet_control_socket(kubelet_dir), request, answer_within_s)


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
                lambda node: node.allocatable(request.resource) == request.count,
                request.timeout_s,
            )
        case "restart":
            kubelet.restart()
        case "view":
            pass
        case unknown:
            raise ControlError(f"unknown command {unknown!r}")
    return node_as_json(kubelet.view())


def node_as_json(node: NodeView) -> dict[str, object]:
    """The node as JSON values."""
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
        "pods": [pod_as_json(view) for view in node.pods.values()],
    }


def pod_as_json(view: PodView) -> dict[str, object]:
    """A pod with its status as JSON values."""
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
    }
