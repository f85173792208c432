"""MIG: modes and devices. The instances that these are made of are in `instances`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pynvml

from sim.gpu.partition import COMPUTE_SLICES
from sim.nvml.abi import (
    DEVICE,
    U32,
    Device,
    Function,
    Source,
    out,
)
from sim.nvml.codes import Code, NvmlFailure

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable

    from hal import MigDevice
    from sim.gpu.profiles import MigProfile
    from sim.nvml.call import Call

_MIB = 1024**2


def can_mig(call: Call) -> None:
    """Checks that the model can be partitioned.

    Raises:
        NvmlFailure: not supported.
    """
    if not call.profile.mig:
        raise NvmlFailure(Code.NOT_SUPPORTED)


def slices_of(profile: str) -> int:
    """The 3 of `3g.40gb`."""
    return int(profile.partition("g.")[0])


def profile_of(call: Call, device: MigDevice) -> MigProfile:
    """The MIG profile of a MIG device."""
    return next(one for one in call.profile.mig if one.profile == device.profile)


def _mode(call: Call) -> tuple[int, int]:
    can_mig(call)
    return int(call.gpu.identity.mig_enabled), int(call.gpu.identity.mig_enabled)


def _max_devices(call: Call) -> int:
    return COMPUTE_SLICES if call.gpu.identity.mig_enabled else 0


def _device_by_index(call: Call) -> int:
    can_mig(call)
    if call.numbers[0] >= COMPUTE_SLICES:
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    for device in call.gpu.identity.mig_devices:
        if device.index == call.numbers[0]:
            return call.handles.of(("mig", device.uuid))
    raise NvmlFailure(Code.NOT_FOUND)


def _parent(call: Call) -> int:
    if call.mig is None:
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    return call.handle_of_gpu(call.gpu)


def _attributes(call: Call) -> ctypes.Structure:
    device = call.mig_device
    slices = slices_of(device.profile)
    attributes: ctypes.Structure = pynvml.c_nvmlDeviceAttributes(
        multiprocessorCount=profile_of(call, device).sm or 0,
        sharedCopyEngineCount=slices,
        gpuInstanceSliceCount=slices,
        computeInstanceSliceCount=slices,
        memorySizeMB=device.memory_bytes // _MIB,
    )
    return attributes


def _id(read: Callable[[MigDevice], int]) -> Callable[[Call], int]:
    return lambda call: read(call.mig_device)


_LIVE, _CONSTANT = Source.LIVE, Source.CONSTANT

FUNCTIONS = (
    Function("nvmlDeviceGetMigMode", (DEVICE, out(), out()), _LIVE, _mode),
    Function("nvmlDeviceGetMaxMigDeviceCount", (DEVICE, out()), _LIVE, _max_devices),
    Function(
        "nvmlDeviceGetMigDeviceHandleByIndex", (DEVICE, U32, out(Device)), _LIVE, _device_by_index
    ),
    Function(
        "nvmlDeviceIsMigDeviceHandle",
        (DEVICE, out()),
        _CONSTANT,
        lambda call: int(call.mig is not None),
        mig=True,
    ),
    Function(
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
        (DEVICE, out(Device)),
        _CONSTANT,
        _parent,
        mig=True,
    ),
    Function(
        "nvmlDeviceGetGpuInstanceId",
        (DEVICE, out()),
        _CONSTANT,
        _id(lambda device: device.gpu_instance),
        mig=True,
    ),
    Function(
        "nvmlDeviceGetComputeInstanceId",
        (DEVICE, out()),
        _CONSTANT,
        _id(lambda device: device.compute_instance),
        mig=True,
    ),
    *(
        Function(
            name,
            (DEVICE, out(pynvml.c_nvmlDeviceAttributes)),
            _CONSTANT,
            _attributes,
            "one copy engine for each slice, no video engines",
            mig=True,
        )
        for name in ("nvmlDeviceGetAttributes", "nvmlDeviceGetAttributes_v2")
    ),
)
