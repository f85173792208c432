"""Control sockets, one JSON object per line: injecting faults into a running node, and its status.

The form of the lines and the client side are in `gpuplugin.linesocket`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from gpuplugin.linesocket import ControlError, ask
from hal import HalError, TimeSliceLevel, UnknownGpu
from sim.gpu.faults import FAULT, GpuFault, NodeFault, problems
from sim.lineserver import LineServer
from sim.node.injection import CannotInject
from sim.node.realtime import SimBackend

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sim.gpu.gpu import SimulatedGpu
    from sim.node.node import SimulatedNode
    from sim.node.realtime import RealTimeNode


RESPONSE_TIMEOUT_S = 5.0


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class GpuStatus(_Message):
    index: int
    uuid: str
    product: str
    lost: bool
    recovery_action: str
    time_slice: TimeSliceLevel
    tenants: list[str]


class InjectedGpu(_Message):
    """A GPU that got the fault; `replaced_by` is the UUID of the GPU that took its place."""

    index: int
    uuid: str
    replaced_by: str | None


class Injected(_Message):
    """What an injection met: the GPUs (none if it was the node), and the model time in seconds."""

    gpus: list[InjectedGpu]
    at_s: float


_GPUS = TypeAdapter(list[GpuStatus])


def control_socket(kubelet_dir: Path) -> Path:
    return kubelet_dir / "gpuplugin-sim.sock"


def serve_control(node: RealTimeNode, path: Path) -> LineServer:
    def handle(request: Mapping[str, object]) -> Mapping[str, object]:
        if "inject" in request:
            with node.update() as model:
                return injected(model, request)
        if "time_slice" in request:
            return _set_time_slice(node, request)
        return _status(node)

    return LineServer(path, handle)


def inject(path: Path, gpu: str | None, what: Mapping[str, object], node: str = "") -> Injected:
    """Inject `what` (a fault as in a scenario) into GPUs of the node at `path`, or the node.

    `node` names the node of a fleet.

    `gpu` is an index, a UUID, or "all", which means every GPU that it applies to; None for a
    fault of the node as a whole. Raises `ControlError` without a node or GPU to which it applies.
    """
    request: dict[str, object] = {"inject": dict(what)}
    request |= {key: value for key, value in (("gpu", gpu), ("node", node)) if value}
    return Injected.model_validate(ask(path, request, RESPONSE_TIMEOUT_S))


def set_time_slice(path: Path, uuid: str, level: TimeSliceLevel) -> None:
    """Set a GPU's time slice; raises `ControlError` if it has no levels, or without a node."""
    ask(path, {"time_slice": int(level), "gpu": uuid}, RESPONSE_TIMEOUT_S)


def status(path: Path) -> list[GpuStatus]:
    """The GPUs of the node behind `path`, by index; raises `ControlError` without a node."""
    response = ask(path, {"status": True}, RESPONSE_TIMEOUT_S)
    return _GPUS.validate_python(response["gpus"])


def injected(model: SimulatedNode, request: Mapping[str, object]) -> Mapping[str, object]:
    """Do what a request of `inject` asks for; raises `ControlError`."""
    try:
        what = FAULT.validate_python(request["inject"])
    except ValidationError as error:
        raise ControlError(f"this cannot be injected: {problems(error)}") from error
    named = request.get("gpu")
    if isinstance(what, NodeFault):
        if named is not None:
            raise ControlError(f"{what.kind} applies to the whole node: name no GPU")
        model.inject_node(what)
        met: list[SimulatedGpu] = []
    elif named is None:
        raise ControlError(f"{what.kind} applies to a GPU: name one, or 'all'")
    else:
        met = _inject_into(model, str(named), what)
    gpus = [
        InjectedGpu(index=gpu.identity.index, uuid=gpu.identity.uuid, replaced_by=gpu.replaced_by)
        for gpu in met
    ]
    return Injected(gpus=gpus, at_s=model.now_s).model_dump()


def _inject_into(model: SimulatedNode, named: str, what: GpuFault) -> list[SimulatedGpu]:
    """The GPUs that it was injected into: of all, those that it applies to."""
    try:
        wanted = list(model.present) if named == "all" else [model.find(named)]
    except UnknownGpu as error:
        last = len(model.present) - 1
        raise ControlError(f"{error.cause}; this node has GPUs 0 to {last}") from error
    met: list[SimulatedGpu] = []
    refusals: list[str] = []
    for gpu in wanted:
        try:
            model.inject(gpu, what)
        except CannotInject as refusal:
            refusals.append(str(refusal))
        else:
            met.append(gpu)
    if not met:
        raise ControlError("; ".join(refusals))
    return met


def _set_time_slice(node: RealTimeNode, request: Mapping[str, object]) -> Mapping[str, object]:
    try:
        level = TimeSliceLevel(int(str(request["time_slice"])))
        SimBackend(node).set_time_slice(str(request.get("gpu")), level)
    except ValueError as error:
        raise ControlError(f"no time-slice level: {request['time_slice']!r}") from error
    except HalError as error:
        raise ControlError(error.cause) from error
    return {}


def _status(node: RealTimeNode) -> Mapping[str, object]:
    with node.update() as model:
        return {
            "scenario": model.scenario.name,
            "model_time_s": model.now_s,
            "gpus": [
                GpuStatus(
                    index=gpu.identity.index,
                    uuid=gpu.identity.uuid,
                    product=gpu.identity.product,
                    lost=gpu.lost,
                    recovery_action=gpu.recovery_action.value,
                    time_slice=gpu.time_slice,
                    tenants=[tenant.name for _, tenant in gpu.tenants],
                ).model_dump()
                for gpu in model.present
            ],
        }
