"""Steering a running simulated node from another process: inject faults, look at the GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from hal import UnknownGpu
from sim.lineserver import ControlError, LineServer, ask
from sim.scenario import HAPPENING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sim.realtime import RealTimeNode

ANSWER_TIMEOUT_S = 5.0


class GpuStatus(BaseModel):
    """One GPU of a simulated node, for those who look from outside."""

    model_config = ConfigDict(frozen=True)

    index: int
    uuid: str
    product: str
    lost: bool
    recovery_action: str
    tenants: list[str]


_GPUS = TypeAdapter(list[GpuStatus])


def control_socket(kubelet_dir: Path) -> Path:
    """Where the node that serves this kubelet folder listens."""
    return kubelet_dir / "gpuplugin-sim.sock"


def serve_control(node: RealTimeNode, path: Path) -> LineServer:
    """Listen for requests to `node` until the server is closed."""

    def handle(request: Mapping[str, object]) -> Mapping[str, object]:
        if "inject" in request:
            return _inject(node, request)
        return _status(node)

    return LineServer(path, handle)


def inject(path: Path, gpu: str, what: Mapping[str, object]) -> Mapping[str, object]:
    """Let `what` (a happening of a scenario) befall a GPU of the node behind `path`.

    Raises:
        ControlError: no node there, no such GPU, or not a happening.
    """
    return ask(path, {"inject": dict(what), "gpu": gpu}, ANSWER_TIMEOUT_S)


def status(path: Path) -> list[GpuStatus]:
    """The GPUs of the node behind `path`, by index.

    Raises:
        ControlError: no node there.
    """
    answer = ask(path, {"status": True}, ANSWER_TIMEOUT_S)
    return _GPUS.validate_python(answer["gpus"])


def _inject(node: RealTimeNode, request: Mapping[str, object]) -> Mapping[str, object]:
    try:
        what = HAPPENING.validate_python(request["inject"])
    except ValidationError as error:
        raise ControlError(f"not something that can befall a GPU: {error}") from error
    with node.present() as model:
        try:
            gpu = model.find(str(request.get("gpu", "")))
        except UnknownGpu as error:
            last = len(model.gpus) - 1
            raise ControlError(f"{error.cause}; this node has GPUs 0 to {last}") from error
        model.befall(gpu, what)
        return {"gpu": gpu.identity.index, "uuid": gpu.identity.uuid, "at_s": model.env.now}


def _status(node: RealTimeNode) -> Mapping[str, object]:
    with node.present() as model:
        return {
            "scenario": model.scenario.name,
            "model_time_s": model.env.now,
            "gpus": [
                GpuStatus(
                    index=gpu.identity.index,
                    uuid=gpu.identity.uuid,
                    product=gpu.identity.product,
                    lost=gpu.lost,
                    recovery_action=gpu.recovery_action.value,
                    tenants=[tenant.name for _, tenant in gpu.tenants],
                ).model_dump()
                for gpu in model.gpus.values()
            ],
        }
