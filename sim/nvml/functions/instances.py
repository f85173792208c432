"""MIG: the GPU instances and compute instances that MIG devices are made of.

A GPU instance has one compute instance, which has all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pynvml

from hal.nvml.api import Code
from sim.gpu.profiles import MIB, instance_memory_bytes
from sim.nvml.abi import (
    ASSUMED,
    COMPUTE_INSTANCE,
    CONSTANT,
    DEVICE,
    GPU_INSTANCE,
    LIVE,
    U32,
    ComputeInstance,
    ComputeInstanceInfo,
    Functions,
    GpuInstance,
    GpuInstanceInfo,
    fill,
    out,
    version,
    versioned,
)
from sim.nvml.call import NvmlFailure, choice
from sim.nvml.functions.mig import (
    can_mig,
    placements,
    possible_starts,
    profile_of,
    slices_of,
    width,
)

if TYPE_CHECKING:
    import ctypes

    from sim.gpu.profiles import MigProfile
    from sim.nvml.call import NvmlCall

function = Functions()

_WHOLE = "a compute instance has all of its GPU instance"
_GPU_PROFILES = 18
_COMPUTE_PROFILES = {1: 0, 2: 1, 3: 2, 4: 3, 7: 4}
"""NVML's compute instance profile by the number of slices; their ids are the same numbers here."""


def _in_mig_mode(call: NvmlCall) -> None:
    can_mig(call)
    if not call.gpu.identity.mig_enabled:
        raise NvmlFailure(Code.NOT_SUPPORTED)


def _gpu_profile_index(call: NvmlCall, mig: MigProfile) -> int:
    slices = slices_of(mig.profile)
    if mig.profile.endswith("+me"):
        return int(pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV1)
    if slices == 1 and width(mig, call.profile) == 2:
        return int(pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV2)
    return _COMPUTE_PROFILES[slices]


def _profile_id(call: NvmlCall, mig: MigProfile) -> int:
    return _gpu_profile_index(call, mig) if mig.gi_profile_id is None else mig.gi_profile_id


def _profile_at(call: NvmlCall) -> MigProfile:
    can_mig(call)
    wanted = choice(call.numbers[0], *range(_GPU_PROFILES))
    for mig in call.profile.mig:
        if _gpu_profile_index(call, mig) == wanted:
            return mig
    raise NvmlFailure(Code.NOT_SUPPORTED)


def _with_id(call: NvmlCall) -> MigProfile:
    _in_mig_mode(call)
    for mig in call.profile.mig:
        if _profile_id(call, mig) == call.numbers[0]:
            return mig
    raise NvmlFailure(Code.INVALID_ARGUMENT)


@function(
    CONSTANT,
    "nvmlDeviceGetGpuInstanceProfileInfo",
    *(DEVICE, U32, out(pynvml.c_nvmlGpuInstanceProfileInfo_t)),
)
def _profile_info(call: NvmlCall) -> ctypes.Structure:
    return _fill_profile_info(_profile_at(call), call, pynvml.c_nvmlGpuInstanceProfileInfo_t())


@function(
    CONSTANT,
    "nvmlDeviceGetGpuInstanceProfileInfoV",
    *(DEVICE, U32, versioned(version(pynvml.c_nvmlGpuInstanceProfileInfo_v2_t, 2))),
)
def _profile_info_v2(call: NvmlCall) -> ctypes.Structure:
    info = call.structure(pynvml.c_nvmlGpuInstanceProfileInfo_v2_t)
    mig = _profile_at(call)
    info.name = f"MIG {mig.profile}".encode()
    return _fill_profile_info(mig, call, info)


def _fill_profile_info(mig: MigProfile, call: NvmlCall, info: ctypes.Structure) -> ctypes.Structure:
    info.id, info.instanceCount = _profile_id(call, mig), mig.instances
    info.sliceCount = info.copyEngineCount = slices_of(mig.profile)
    info.multiprocessorCount = mig.sm or 0
    info.memorySizeMB = instance_memory_bytes(mig, call.profile) // MIB
    return info


@function(
    CONSTANT,
    "nvmlDeviceGetGpuInstancePossiblePlacements nvmlDeviceGetGpuInstancePossiblePlacements_v2",
    *(DEVICE, U32, fill(pynvml.c_nvmlGpuInstancePlacement_t), out()),
)
def _possible(call: NvmlCall) -> tuple[list[ctypes.Structure], int]:
    mig = _with_id(call)
    size = width(mig, call.profile)
    found = [
        pynvml.c_nvmlGpuInstancePlacement_t(start=start, size=size)
        for start in possible_starts(mig, call.profile)
    ]
    return found, len(found)


@function(LIVE, "nvmlDeviceGetGpuInstances", DEVICE, U32, fill(GpuInstance), out())
def _instances(call: NvmlCall) -> tuple[list[int], int]:
    mig = _with_id(call)
    uuid = call.gpu.identity.uuid
    found = [
        call.handles.of(("gi", uuid, device.gpu_instance))
        for device in call.gpu.identity.mig_devices
        if device.profile == mig.profile
    ]
    return found, len(found)


@function(LIVE, "nvmlDeviceGetGpuInstanceRemainingCapacity", DEVICE, U32, out())
def _remaining(call: NvmlCall) -> int:
    mig = _with_id(call)
    taken = placements(call.gpu.identity.mig_devices, call.profile)
    used = {slot for start, size in taken.values() for slot in range(start, start + size)}
    size = width(mig, call.profile)
    free = 0
    for start in possible_starts(mig, call.profile):
        slots = set(range(start, start + size))
        if not slots & used:
            used |= slots
            free += 1
    return free


@function(LIVE, "nvmlDeviceGetGpuInstanceById", DEVICE, U32, out(GpuInstance))
def _instance_by_id(call: NvmlCall) -> int:
    _in_mig_mode(call)
    for device in call.gpu.identity.mig_devices:
        if device.gpu_instance == call.numbers[0]:
            return call.handles.of(("gi", call.gpu.identity.uuid, device.gpu_instance))
    raise NvmlFailure(Code.NOT_FOUND)


@function(
    ASSUMED,
    "nvmlGpuInstanceGetInfo",
    *(GPU_INSTANCE, out(GpuInstanceInfo)),
    note="placed in order, each at the first place that is free",
    mig=True,
)
def _instance_info(call: NvmlCall) -> ctypes.Structure:
    device = call.mig_device
    start, size = placements(call.gpu.identity.mig_devices, call.profile)[device.gpu_instance]
    return GpuInstanceInfo(
        call.handle_of_gpu(call.gpu),
        device.gpu_instance,
        _profile_id(call, profile_of(call, device)),
        pynvml.c_nvmlGpuInstancePlacement_t(start, size),
    )


@function(
    LIVE,
    "nvmlGpuInstanceGetComputeInstanceById",
    *(GPU_INSTANCE, U32, out(ComputeInstance)),
    mig=True,
)
def _compute_instance(call: NvmlCall) -> int:
    device = call.mig_device
    if call.numbers[0] != device.compute_instance:
        raise NvmlFailure(Code.NOT_FOUND)
    return call.handles.of(("ci", call.gpu.identity.uuid, device.gpu_instance))


@function(
    LIVE,
    "nvmlGpuInstanceGetComputeInstances",
    *(GPU_INSTANCE, U32, fill(ComputeInstance), out()),
    note=_WHOLE,
    mig=True,
)
def _compute_instances(call: NvmlCall) -> tuple[list[int], int]:
    device = call.mig_device
    if call.numbers[0] != _COMPUTE_PROFILES[slices_of(device.profile)]:
        return [], 0
    return [call.handles.of(("ci", call.gpu.identity.uuid, device.gpu_instance))], 1


@function(
    CONSTANT,
    "nvmlComputeInstanceGetInfo nvmlComputeInstanceGetInfo_v2",
    *(COMPUTE_INSTANCE, out(ComputeInstanceInfo)),
    note=_WHOLE,
    mig=True,
)
def _compute_info(call: NvmlCall) -> ctypes.Structure:
    device, uuid = call.mig_device, call.gpu.identity.uuid
    slices = slices_of(device.profile)
    return ComputeInstanceInfo(
        call.handle_of_gpu(call.gpu),
        call.handles.of(("gi", uuid, device.gpu_instance)),
        device.compute_instance,
        _COMPUTE_PROFILES[slices],
        pynvml.c_nvmlComputeInstancePlacement_t(0, slices),
    )


@function(
    CONSTANT,
    "nvmlGpuInstanceGetComputeInstanceProfileInfo",
    *(GPU_INSTANCE, U32, U32, out(pynvml.c_nvmlComputeInstanceProfileInfo_t)),
    note=_WHOLE,
    mig=True,
)
def _compute_profile_info(call: NvmlCall) -> ctypes.Structure:
    return _fill_compute_profile_info(call, pynvml.c_nvmlComputeInstanceProfileInfo_t())


@function(
    CONSTANT,
    "nvmlGpuInstanceGetComputeInstanceProfileInfoV",
    *(GPU_INSTANCE, U32, U32),
    versioned(version(pynvml.c_nvmlComputeInstanceProfileInfo_v2_t, 2)),
    note=_WHOLE,
    mig=True,
)
def _compute_profile_info_v2(call: NvmlCall) -> ctypes.Structure:
    info = call.structure(pynvml.c_nvmlComputeInstanceProfileInfo_v2_t)
    info.name = f"MIG {call.mig_device.profile}".encode()
    return _fill_compute_profile_info(call, info)


def _fill_compute_profile_info(call: NvmlCall, info: ctypes.Structure) -> ctypes.Structure:
    device = call.mig_device
    slices = slices_of(device.profile)
    profile, engines = call.numbers
    choice(engines, 0)
    if choice(profile, *range(9)) != _COMPUTE_PROFILES[slices]:
        raise NvmlFailure(Code.NOT_SUPPORTED)
    info.id, info.instanceCount = profile, 1
    info.sliceCount = info.sharedCopyEngineCount = slices
    info.multiprocessorCount = profile_of(call, device).sm or 0
    return info
