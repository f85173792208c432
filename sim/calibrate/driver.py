"""The driver's edge: which GPU to measure, and its time-slice level, by `hal`."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gpuplugin.cli.backends import BackendError, make_backend, told
from gpuplugin.config.load import load_settings
from gpuplugin.config.loaded import ConfigError
from hal import ComputeMode, DriverNotFound, GpuState, HalError, NotSupported
from sim.calibrate.edges import Answer, EdgeError, Look, Request, SetLevel, Target
from sim.gpu.profiles import load_profile
from sim.study.observe import nearest_model

if TYPE_CHECKING:
    from hal import Backend, Gpu


class DriverEdge:
    """The NVML backend, with the plugin's variables (driver root and so on)."""

    def answer(self, request: Request) -> Answer:
        try:
            settings = load_settings({}, {**os.environ, "GPUPLUGIN_BACKEND": "nvml"}, None).settings
            with make_backend(settings, control=False) as backend:
                backend.open()
                try:
                    return _answer(request, backend)
                finally:
                    backend.close()
        except DriverNotFound as error:
            raise EdgeError(
                f"there is no NVIDIA driver on this machine ({error.library} was not found), and "
                f"it takes a GPU. {error.remedy}"
            ) from error
        except (HalError, BackendError, ConfigError) as error:
            raise EdgeError(told(error)) from error


def _answer(request: Request, backend: Backend) -> Answer:
    match request:
        case Look():
            return Answer(target=_target(backend, request.gpu))
        case SetLevel():
            backend.set_time_slice(request.uuid, request.level)
            return Answer()
    raise EdgeError(f"{request.do} is not for the driver")


def _target(backend: Backend, wanted: str | None) -> Target:
    gpus = backend.gpus()
    if not gpus:
        raise EdgeError("the driver lists no GPU: see that 'nvidia-smi' does")
    reasons = []
    for gpu in gpus:
        if wanted not in (None, gpu.uuid, str(gpu.index)):
            continue
        reason = _why_not(gpu)
        if reason is None:
            return _described(backend, gpu)
        reasons.append(f"GPU {gpu.index} {reason}")
    if not reasons:
        known = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus)
        raise EdgeError(f"there is no GPU {wanted}; the driver lists {known}")
    raise EdgeError("; ".join(reasons))


def _why_not(gpu: Gpu) -> str | None:
    if gpu.state is GpuState.LOST:
        return "is lost"
    if gpu.mig_enabled:
        return "is in MIG mode, and a whole GPU is needed"
    if gpu.compute_mode not in (None, ComputeMode.DEFAULT):
        return f"is in compute mode {gpu.compute_mode.value}, and two processes must share it"
    return None


def _described(backend: Backend, gpu: Gpu) -> Target:
    model = nearest_model(gpu)
    try:
        others = len(backend.processes(gpu.uuid))
    except NotSupported:
        others = 0
    return Target(
        uuid=gpu.uuid,
        index=gpu.index,
        product=gpu.product,
        model=model,
        driver_version=backend.driver_version,
        has_levels=load_profile(model).has_levels,
        others=others,
        today=datetime.now(UTC).date(),
    )
