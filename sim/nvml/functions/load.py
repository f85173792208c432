"""Memory, utilisation and processes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pynvml

from hal.nvml.api import Code, has_long_process_entries
from sim.gpu.profiles import MIB
from sim.nvml.abi import (
    ASSUMED,
    CONSTANT,
    COUNT,
    DEVICE,
    LIVE,
    U64,
    Functions,
    ProcessInfoV1,
    ProcessInfoV3,
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

    from hal import ComputeProcess
    from sim.nvml.call import NvmlCall

function = Functions()

_SMALL_BAR1_BYTES = 256 * MIB
_BAR1_USED_BYTES = 1 * MIB
_SAMPLE_US = 166_667
"""Assumed: the period over which the driver measures utilisation, 1/6 s."""


def _memory(call: NvmlCall) -> tuple[int, int, int]:
    """Bytes: all, kept by the driver, and in use by processes."""
    if call.mig is not None:
        tenancy = call.gpu.tenancies[call.mig.uuid]
        return call.mig.memory_bytes, 0, tenancy.memory.used_bytes
    if call.profile.unified_memory:
        raise NvmlFailure(Code.NOT_SUPPORTED)
    return (
        call.profile.memory_bytes,
        call.profile.memory_reserved_bytes or 0,
        call.gpu.tenants_bytes,
    )


@function(
    LIVE,
    "nvmlDeviceGetMemoryInfo",
    *(DEVICE, out(pynvml.c_nvmlMemory_t)),
    note="used includes what the driver keeps; not of models that use the host's memory",
    mig=True,
)
def _memory_v1(call: NvmlCall) -> ctypes.Structure:
    total, reserved, used = _memory(call)
    used = min(total, used + reserved)
    info: ctypes.Structure = pynvml.c_nvmlMemory_t(total=total, free=total - used, used=used)
    return info


@function(
    LIVE,
    "nvmlDeviceGetMemoryInfo_v2",
    *(DEVICE, versioned(version(pynvml.c_nvmlMemory_v2_t, 2))),
    note="not of models that use the host's memory",
    mig=True,
)
def _memory_v2(call: NvmlCall) -> ctypes.Structure:
    total, reserved, used = _memory(call)
    info = call.structure(pynvml.c_nvmlMemory_v2_t)
    info.total, info.reserved, info.used = total, reserved, used
    info.free = max(0, total - reserved - used)
    return info


@function(
    ASSUMED,
    "nvmlDeviceGetBAR1MemoryInfo",
    *(DEVICE, out(pynvml.c_nvmlBAR1Memory_t)),
    note="256 MiB, or on newer data-centre boards as large as the memory",
    mig=True,
)
def _bar1(call: NvmlCall) -> ctypes.Structure:
    total = call.profile.board.bar1_bytes or _SMALL_BAR1_BYTES
    if (
        call.profile.board.bar1_bytes is None
        and not is_geforce(call.gpu)
        and call.profile.compute_capability >= (8, 0)
    ):
        total = 1 << (call.profile.memory_bytes - 1).bit_length()
    info: ctypes.Structure = pynvml.c_nvmlBAR1Memory_t(
        bar1Total=total, bar1Free=total - _BAR1_USED_BYTES, bar1Used=_BAR1_USED_BYTES
    )
    return info


def _not_in_mig_mode(call: NvmlCall) -> None:
    """The driver measures no utilisation of a GPU in MIG mode."""
    if call.gpu.identity.mig_enabled:
        raise NvmlFailure(Code.NOT_SUPPORTED)


@function(
    LIVE,
    "nvmlDeviceGetUtilizationRates",
    *(DEVICE, out(pynvml.c_nvmlUtilization_t)),
    note="of memory bandwidth: 0; not in MIG mode",
)
def _utilization(call: NvmlCall) -> ctypes.Structure:
    _not_in_mig_mode(call)
    share = call.gpu.telemetry(call.node.now_s).utilization or 0.0
    rates: ctypes.Structure = pynvml.c_nvmlUtilization_t(gpu=round(100 * share), memory=0)
    return rates


@function(
    CONSTANT,
    "nvmlDeviceGetEncoderUtilization nvmlDeviceGetDecoderUtilization "
    "nvmlDeviceGetJpgUtilization nvmlDeviceGetOfaUtilization",
    *(DEVICE, out(), out()),
    note="0; not in MIG mode",
)
def _idle_engine(call: NvmlCall) -> tuple[int, int]:
    _not_in_mig_mode(call)
    return 0, _SAMPLE_US


def _processes(call: NvmlCall, *, graphics: bool) -> list[ComputeProcess]:
    """Those of the MIG device, or all of the GPU, MIG devices included."""
    listed = [one for one in call.processes() if one.graphics is graphics]
    if call.mig is None:
        return listed
    return [process for process in listed if process.mig_uuid == call.mig.uuid]


_V1, _V2 = array(ProcessInfoV1, 1), array(pynvml.c_nvmlProcessInfo_v2_t, 1)


def _listed_v1(call: NvmlCall, *, graphics: bool) -> list[ctypes.Structure]:
    return [
        ProcessInfoV1(pid=call.pids.shown(process.pid), usedGpuMemory=process.memory_bytes or 0)
        for process in _processes(call, graphics=graphics)
    ]


def _listed(call: NvmlCall, *, graphics: bool) -> list[ctypes.Structure]:
    migs = {mig.uuid: mig for mig in call.gpu.identity.mig_devices}
    longer = call.function.endswith("_v3") and has_long_process_entries(
        call.node.scenario.driver_version
    )
    structure = ProcessInfoV3 if longer else pynvml.c_nvmlProcessInfo_v2_t
    found = []
    for process in _processes(call, graphics=graphics):
        mig = migs.get(process.mig_uuid or "")
        found.append(
            structure(
                pid=call.pids.shown(process.pid),
                usedGpuMemory=process.memory_bytes or 0,
                gpuInstanceId=NO_INSTANCE if mig is None else mig.gpu_instance,
                computeInstanceId=NO_INSTANCE if mig is None else mig.compute_instance,
            )
        )
    return found


_LONG_ENTRIES = "32 bytes each in version 3 of drivers 535.43 to 535.86"
for _kind, _graphics in (("Compute", False), ("Graphics", True)):
    _name = f"nvmlDeviceGet{_kind}RunningProcesses"
    function(LIVE, _name, DEVICE, COUNT, _V1, mig=True)(partial(_listed_v1, graphics=_graphics))
    function(LIVE, f"{_name}_v2", DEVICE, COUNT, _V2, mig=True)(
        partial(_listed, graphics=_graphics)
    )
    function(LIVE, f"{_name}_v3", DEVICE, COUNT, _V2, note=_LONG_ENTRIES, mig=True)(
        partial(_listed, graphics=_graphics)
    )

_MPS = "nvmlDeviceGetMPSComputeRunningProcesses"
for _names, _array in ((_MPS, _V1), (f"{_MPS}_v2 {_MPS}_v3", _V2)):
    function(CONSTANT, _names, DEVICE, COUNT, _array, note="none", mig=True)(lambda _: [])


@function(
    LIVE,
    "nvmlDeviceGetProcessUtilization",
    *(DEVICE, array(pynvml.c_nvmlProcessUtilizationSample_t, 2), COUNT, U64),
    note="one sample for each process; not in MIG mode",
)
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
        for process in call.processes()
    ]
    if not found:
        raise NvmlFailure(Code.NOT_FOUND)
    return found
