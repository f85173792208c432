"""Memory, utilisation and processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pynvml

from hal.nvml.api import Code
from sim.gpu.profiles import MIB
from sim.nvml.abi import (
    COUNT,
    DEVICE,
    U64,
    Function,
    ProcessInfoV1,
    Source,
    array,
    out,
    version,
    versioned,
)
from sim.nvml.call import NvmlFailure
from sim.nvml.functions.events import NO_INSTANCE
from sim.nvml.functions.inventory import is_geforce

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable

    from hal import ComputeProcess
    from sim.nvml.call import NvmlCall

_SMALL_BAR1_BYTES = 256 * MIB
_BAR1_USED_BYTES = 1 * MIB
_SAMPLE_US = 166_667
"""Assumed: the period over which the driver measures utilisation, 1/6 s."""


def _memory(call: NvmlCall) -> tuple[int, int, int]:
    """Bytes: all, kept by the driver, and in use by processes."""
    if call.mig is not None:
        tenancy = call.gpu.tenancies[call.mig.uuid]
        return call.mig.memory_bytes, 0, tenancy.memory.used_bytes
    reading = call.gpu.telemetry(call.node.now_s)
    reserved = call.profile.memory_reserved_bytes or 0
    return reading.memory_total_bytes, reserved, max(0, reading.memory_used_bytes - reserved)


def _memory_v1(call: NvmlCall) -> ctypes.Structure:
    total, reserved, used = _memory(call)
    used = min(total, used + reserved)
    info: ctypes.Structure = pynvml.c_nvmlMemory_t(total=total, free=total - used, used=used)
    return info


def _memory_v2(call: NvmlCall) -> ctypes.Structure:
    total, reserved, used = _memory(call)
    info = call.structure(pynvml.c_nvmlMemory_v2_t)
    info.total, info.reserved, info.used = total, reserved, used
    info.free = max(0, total - reserved - used)
    return info


def _bar1(call: NvmlCall) -> ctypes.Structure:
    total = _SMALL_BAR1_BYTES
    if not is_geforce(call.gpu) and call.profile.compute_capability >= (8, 0):
        total = 1 << (call.gpu.identity.memory_bytes - 1).bit_length()
    info: ctypes.Structure = pynvml.c_nvmlBAR1Memory_t(
        bar1Total=total, bar1Free=total - _BAR1_USED_BYTES, bar1Used=_BAR1_USED_BYTES
    )
    return info


def _not_in_mig_mode(call: NvmlCall) -> None:
    """The driver measures no utilisation of a GPU in MIG mode."""
    if call.gpu.identity.mig_enabled:
        raise NvmlFailure(Code.NOT_SUPPORTED)


def _utilization(call: NvmlCall) -> ctypes.Structure:
    _not_in_mig_mode(call)
    share = call.gpu.telemetry(call.node.now_s).utilization or 0.0
    rates: ctypes.Structure = pynvml.c_nvmlUtilization_t(gpu=round(100 * share), memory=0)
    return rates


def _idle_engine(call: NvmlCall) -> tuple[int, int]:
    _not_in_mig_mode(call)
    return 0, _SAMPLE_US


def _processes(call: NvmlCall) -> list[ComputeProcess]:
    """Those of the MIG device, or all of the GPU, MIG devices included."""
    listed = call.gpu.processes()
    if call.mig is None:
        return list(listed)
    return [process for process in listed if process.mig_uuid == call.mig.uuid]


def _listed(
    structure: type[ctypes.Structure], *, instances: bool
) -> Callable[[NvmlCall], list[ctypes.Structure]]:
    def response(call: NvmlCall) -> list[ctypes.Structure]:
        migs = {mig.uuid: mig for mig in call.gpu.identity.mig_devices}
        found = []
        for process in _processes(call):
            one = structure(
                pid=call.pids.shown(process.pid), usedGpuMemory=process.memory_bytes or 0
            )
            if instances:
                mig = migs.get(process.mig_uuid or "")
                gi = NO_INSTANCE if mig is None else mig.gpu_instance
                ci = NO_INSTANCE if mig is None else mig.compute_instance
                one.gpuInstanceId = gi
                one.computeInstanceId = ci
            found.append(one)
        return found

    return response


def _samples(call: NvmlCall) -> list[ctypes.Structure]:
    """The present shares: as samples they are always newer than the last ones that were seen."""
    _not_in_mig_mode(call)
    call.gpu.settle(call.node.now_s)
    now_us = int(call.node.now_s * 1e6) + 1
    (since_us,) = call.numbers
    found = [
        pynvml.c_nvmlProcessUtilizationSample_t(
            pid=call.pids.shown(process.pid),
            timeStamp=max(now_us, since_us + 1),
            smUtil=round(100 * (process.sm_share or 0.0)),
        )
        for process in call.gpu.processes()
    ]
    if not found:
        raise NvmlFailure(Code.NOT_FOUND)
    return found


_V1 = _listed(ProcessInfoV1, instances=False)
_V2 = _listed(pynvml.c_nvmlProcessInfo_v2_t, instances=True)
_NAMES = {
    "nvmlDeviceGet{}RunningProcesses": (ProcessInfoV1, _V1),
    "nvmlDeviceGet{}RunningProcesses_v2": (pynvml.c_nvmlProcessInfo_v2_t, _V2),
    "nvmlDeviceGet{}RunningProcesses_v3": (pynvml.c_nvmlProcessInfo_v3_t, _V2),
}


def _nobody(_call: NvmlCall) -> list[ctypes.Structure]:
    return []


FUNCTIONS = (
    Function(
        "nvmlDeviceGetMemoryInfo",
        (DEVICE, out(pynvml.c_nvmlMemory_t)),
        Source.LIVE,
        _memory_v1,
        "used includes what the driver keeps",
        mig=True,
    ),
    Function(
        "nvmlDeviceGetMemoryInfo_v2",
        (DEVICE, versioned(version(pynvml.c_nvmlMemory_v2_t, 2))),
        Source.LIVE,
        _memory_v2,
        mig=True,
    ),
    Function(
        "nvmlDeviceGetBAR1MemoryInfo",
        (DEVICE, out(pynvml.c_nvmlBAR1Memory_t)),
        Source.ASSUMED,
        _bar1,
        "256 MiB, or on newer data-centre boards as large as the memory",
        mig=True,
    ),
    Function(
        "nvmlDeviceGetUtilizationRates",
        (DEVICE, out(pynvml.c_nvmlUtilization_t)),
        Source.LIVE,
        _utilization,
        "of memory bandwidth: 0; not in MIG mode",
    ),
    *(
        Function(
            f"nvmlDeviceGet{engine}Utilization",
            (DEVICE, out(), out()),
            Source.CONSTANT,
            _idle_engine,
            "0; not in MIG mode",
        )
        for engine in ("Encoder", "Decoder", "Jpg", "Ofa")
    ),
    *(
        Function(
            name.format("Compute"),
            (DEVICE, COUNT, array(structure, 1)),
            Source.LIVE,
            response,
            mig=True,
        )
        for name, (structure, response) in _NAMES.items()
    ),
    *(
        Function(
            name.format(kind),
            (DEVICE, COUNT, array(structure, 1)),
            Source.CONSTANT,
            _nobody,
            "nobody",
            mig=True,
        )
        for kind in ("Graphics", "MPSCompute")
        for name, (structure, _) in _NAMES.items()
    ),
    Function(
        "nvmlDeviceGetProcessUtilization",
        (DEVICE, array(pynvml.c_nvmlProcessUtilizationSample_t, 2), COUNT, U64),
        Source.LIVE,
        _samples,
        "one sample for each process; not in MIG mode",
    ),
)
