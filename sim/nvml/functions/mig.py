"""MIG modes and MIG devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pynvml

from hal.nvml.api import Code
from sim.gpu.instances import InUse
from sim.gpu.profiles import COMPUTE_SLICES, MIB, engines_of, slices_of
from sim.nvml.abi import CONSTANT, DEVICE, LIVE, U32, Device, Functions, out
from sim.nvml.call import NvmlFailure, choice

if TYPE_CHECKING:
    import ctypes

    from sim.gpu.profiles import MigProfile
    from sim.nvml.call import NvmlCall

function = Functions()


def can_mig(call: NvmlCall) -> None:
    """Raise `NvmlFailure` (not supported) for a model that cannot be partitioned."""
    if not call.profile.mig:
        raise NvmlFailure(Code.NOT_SUPPORTED)


def profile_of(call: NvmlCall, name: str) -> MigProfile:
    return next(one for one in call.profile.mig if one.profile == name)


@function(LIVE, "nvmlDeviceGetMigMode", DEVICE, out(), out())
def _mode(call: NvmlCall) -> tuple[int, int]:
    can_mig(call)
    present, pending = call.gpu.identity.mig_enabled, call.gpu.mig_pending
    return int(present), int(present if pending is None else pending)


@function(
    LIVE,
    "nvmlDeviceSetMigMode",
    *(DEVICE, U32, out()),
    note="at once without processes, otherwise at the next reset",
    changes=True,
)
def _set_mode(call: NvmlCall) -> int:
    can_mig(call)
    try:
        call.node.partitions.set_mig_mode(call.gpu, enabled=bool(choice(call.numbers[0], 0, 1)))
    except InUse:
        return Code.IN_USE
    return Code.SUCCESS


@function(LIVE, "nvmlDeviceGetMaxMigDeviceCount", DEVICE, out())
def _max_devices(call: NvmlCall) -> int:
    return COMPUTE_SLICES if call.gpu.identity.mig_enabled else 0


@function(LIVE, "nvmlDeviceGetMigDeviceHandleByIndex", DEVICE, U32, out(Device))
def _device_by_index(call: NvmlCall) -> int:
    can_mig(call)
    if call.numbers[0] >= COMPUTE_SLICES:
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    device = call.mig_devices.get(call.numbers[0])
    if device is None:
        raise NvmlFailure(Code.NOT_FOUND)
    return call.handles.of(("mig", device.uuid))


@function(CONSTANT, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", DEVICE, out(Device), mig=True)
def _parent(call: NvmlCall) -> int:
    if call.mig is None:
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    return call.handle_of_gpu(call.gpu)


@function(
    CONSTANT,
    "nvmlDeviceGetAttributes nvmlDeviceGetAttributes_v2",
    *(DEVICE, out(pynvml.c_nvmlDeviceAttributes)),
    mig=True,
)
def _attributes(call: NvmlCall) -> ctypes.Structure:
    device = call.mig_device
    mig = profile_of(call, device.profile)
    slices, engines = slices_of(device.profile), engines_of(mig)
    attributes: ctypes.Structure = pynvml.c_nvmlDeviceAttributes(
        multiprocessorCount=mig.sm or 0,
        sharedCopyEngineCount=engines.copy_engines,
        sharedDecoderCount=engines.decoder,
        sharedJpegCount=engines.jpeg,
        sharedOfaCount=engines.ofa,
        gpuInstanceSliceCount=slices,
        computeInstanceSliceCount=slices,
        memorySizeMB=device.memory_bytes // MIB,
    )
    return attributes


function(CONSTANT, "nvmlDeviceIsMigDeviceHandle", DEVICE, out(), mig=True)(
    lambda call: int(call.mig is not None)
)
function(CONSTANT, "nvmlDeviceGetGpuInstanceId", DEVICE, out(), mig=True)(
    lambda call: call.mig_device.gpu_instance
)
function(CONSTANT, "nvmlDeviceGetComputeInstanceId", DEVICE, out(), mig=True)(
    lambda call: call.mig_device.compute_instance
)
