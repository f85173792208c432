"""MIG: the GPU instances and compute instances that MIG devices are made of.

A GPU instance has at most one compute instance, which has all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pynvml

from hal.nvml.api import Code
from sim.gpu.instances import InUse, NoRoom, free_starts, possible_starts, width
from sim.gpu.profiles import MIB, engines_of, instance_memory_bytes, slices_of
from sim.nvml.abi import (
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
    inout,
    out,
    version,
    versioned,
)
from sim.nvml.call import NvmlFailure, choice
from sim.nvml.functions.mig import can_mig, profile_of

if TYPE_CHECKING:
    import ctypes

    from sim.gpu.instances import GpuInstance as Instance
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
    return _having_id(call)


def _having_id(call: NvmlCall) -> MigProfile:
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


@function(
    CONSTANT,
    "nvmlDeviceGetGpuInstanceProfileInfoByIdV",
    *(DEVICE, U32, versioned(version(pynvml.c_nvmlGpuInstanceProfileInfo_v2_t, 2))),
)
def _profile_info_by_id(call: NvmlCall) -> ctypes.Structure:
    can_mig(call)
    info = call.structure(pynvml.c_nvmlGpuInstanceProfileInfo_v2_t)
    mig = _having_id(call)
    info.name = f"MIG {mig.profile}".encode()
    return _fill_profile_info(mig, call, info)


def _fill_profile_info(mig: MigProfile, call: NvmlCall, info: ctypes.Structure) -> ctypes.Structure:
    engines = engines_of(mig)
    info.id, info.instanceCount = _profile_id(call, mig), mig.instances
    info.sliceCount, info.copyEngineCount = slices_of(mig.profile), engines.copy_engines
    info.decoderCount, info.jpegCount, info.ofaCount = engines.decoder, engines.jpeg, engines.ofa
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
    found = [
        _handle_of(call, "gi", instance)
        for instance in call.gpu.instances.values()
        if instance.profile == mig.profile
    ]
    return found, len(found)


def _handle_of(call: NvmlCall, kind: Literal["gi", "ci"], instance: Instance) -> int:
    return call.handles.of((kind, call.gpu.identity.uuid, instance.id))


@function(LIVE, "nvmlDeviceGetGpuInstanceRemainingCapacity", DEVICE, U32, out())
def _remaining(call: NvmlCall) -> int:
    mig = _with_id(call)
    return len(free_starts(mig, call.profile, call.gpu.instances.values()))


@function(LIVE, "nvmlDeviceGetGpuInstanceById", DEVICE, U32, out(GpuInstance))
def _instance_by_id(call: NvmlCall) -> int:
    _in_mig_mode(call)
    instance = call.gpu.instances.get(call.numbers[0])
    if instance is None:
        raise NvmlFailure(Code.NOT_FOUND)
    return _handle_of(call, "gi", instance)


@function(LIVE, "nvmlDeviceCreateGpuInstance", DEVICE, U32, out(GpuInstance), changes=True)
def _create(call: NvmlCall) -> int:
    return _created(call, None)


@function(
    LIVE,
    "nvmlDeviceCreateGpuInstanceWithPlacement",
    *(DEVICE, U32, inout(pynvml.c_nvmlGpuInstancePlacement_t), out(GpuInstance)),
    changes=True,
)
def _create_at(call: NvmlCall) -> tuple[ctypes.Structure, int]:
    placement = call.structure(pynvml.c_nvmlGpuInstancePlacement_t)
    return placement, _created(call, placement.start)


def _created(call: NvmlCall, start: int | None) -> int:
    try:
        made = call.node.partitions.create_gpu_instance(call.gpu, _with_id(call), start)
    except NoRoom:
        raise NvmlFailure(Code.INSUFFICIENT_RESOURCES) from None
    return _handle_of(call, "gi", made)


@function(LIVE, "nvmlGpuInstanceDestroy", GPU_INSTANCE, mig=True, changes=True)
def _destroy(call: NvmlCall) -> tuple[()]:
    try:
        call.node.partitions.destroy_gpu_instance(call.gpu, call.instance)
    except InUse:
        raise NvmlFailure(Code.IN_USE) from None
    return ()


@function(
    LIVE,
    "nvmlGpuInstanceGetInfo",
    *(GPU_INSTANCE, out(GpuInstanceInfo)),
    note="instances of a scenario are placed in order, each at the first place that is free",
    mig=True,
)
def _instance_info(call: NvmlCall) -> ctypes.Structure:
    instance = call.instance
    return GpuInstanceInfo(
        call.handle_of_gpu(call.gpu),
        instance.id,
        _profile_id(call, profile_of(call, instance.profile)),
        pynvml.c_nvmlGpuInstancePlacement_t(instance.start, instance.size),
    )


@function(
    LIVE,
    "nvmlGpuInstanceGetComputeInstanceById",
    *(GPU_INSTANCE, U32, out(ComputeInstance)),
    mig=True,
)
def _compute_instance(call: NvmlCall) -> int:
    if call.mig is None or call.numbers[0] != call.mig.compute_instance:
        raise NvmlFailure(Code.NOT_FOUND)
    return _handle_of(call, "ci", call.instance)


def _compute_profile(call: NvmlCall) -> int:
    """The one compute instance profile of the GPU instance: all of it."""
    return _COMPUTE_PROFILES[slices_of(call.instance.profile)]


@function(
    LIVE,
    "nvmlGpuInstanceGetComputeInstances",
    *(GPU_INSTANCE, U32, fill(ComputeInstance), out()),
    note=_WHOLE,
    mig=True,
)
def _compute_instances(call: NvmlCall) -> tuple[list[int], int]:
    if call.mig is None or call.numbers[0] != _compute_profile(call):
        return [], 0
    return [_handle_of(call, "ci", call.instance)], 1


@function(
    LIVE,
    "nvmlGpuInstanceGetComputeInstanceRemainingCapacity",
    *(GPU_INSTANCE, U32, out()),
    note=_WHOLE,
    mig=True,
)
def _compute_remaining(call: NvmlCall) -> int:
    return int(call.mig is None and call.numbers[0] == _compute_profile(call))


@function(
    CONSTANT,
    "nvmlGpuInstanceGetComputeInstancePossiblePlacements",
    *(GPU_INSTANCE, U32, fill(pynvml.c_nvmlComputeInstancePlacement_t), out()),
    note=_WHOLE,
    mig=True,
)
def _compute_possible(call: NvmlCall) -> tuple[list[ctypes.Structure], int]:
    if call.numbers[0] != _compute_profile(call):
        return [], 0
    size = slices_of(call.instance.profile)
    return [pynvml.c_nvmlComputeInstancePlacement_t(0, size)], 1


@function(
    LIVE,
    "nvmlGpuInstanceCreateComputeInstance",
    *(GPU_INSTANCE, U32, out(ComputeInstance)),
    note=_WHOLE,
    mig=True,
    changes=True,
)
def _create_compute(call: NvmlCall) -> int:
    if choice(call.numbers[0], *range(9)) != _compute_profile(call):
        raise NvmlFailure(Code.NOT_SUPPORTED)
    try:
        call.node.partitions.create_compute_instance(call.gpu, call.instance)
    except NoRoom:
        raise NvmlFailure(Code.INSUFFICIENT_RESOURCES) from None
    return _handle_of(call, "ci", call.instance)


@function(
    LIVE,
    "nvmlGpuInstanceCreateComputeInstanceWithPlacement",
    *(GPU_INSTANCE, U32),
    *(inout(pynvml.c_nvmlComputeInstancePlacement_t), out(ComputeInstance)),
    note=_WHOLE,
    mig=True,
    changes=True,
)
def _create_compute_at(call: NvmlCall) -> tuple[ctypes.Structure, int]:
    placement = call.structure(pynvml.c_nvmlComputeInstancePlacement_t)
    choice(placement.start, 0)
    return placement, _create_compute(call)


@function(LIVE, "nvmlComputeInstanceDestroy", COMPUTE_INSTANCE, mig=True, changes=True)
def _destroy_compute(call: NvmlCall) -> tuple[()]:
    try:
        call.node.partitions.destroy_compute_instance(call.gpu, call.mig_device)
    except InUse:
        raise NvmlFailure(Code.IN_USE) from None
    return ()


@function(
    CONSTANT,
    "nvmlComputeInstanceGetInfo nvmlComputeInstanceGetInfo_v2",
    *(COMPUTE_INSTANCE, out(ComputeInstanceInfo)),
    note=_WHOLE,
    mig=True,
)
def _compute_info(call: NvmlCall) -> ctypes.Structure:
    return ComputeInstanceInfo(
        call.handle_of_gpu(call.gpu),
        _handle_of(call, "gi", call.instance),
        call.mig_device.compute_instance,
        _compute_profile(call),
        pynvml.c_nvmlComputeInstancePlacement_t(0, slices_of(call.instance.profile)),
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
    info.name = f"MIG {call.instance.profile}".encode()
    return _fill_compute_profile_info(call, info)


def _fill_compute_profile_info(call: NvmlCall, info: ctypes.Structure) -> ctypes.Structure:
    profile, engine_profile = call.numbers
    choice(engine_profile, 0)
    if choice(profile, *range(9)) != _compute_profile(call):
        raise NvmlFailure(Code.NOT_SUPPORTED)
    mig = profile_of(call, call.instance.profile)
    engines = engines_of(mig)
    info.id, info.instanceCount = profile, 1
    info.sliceCount, info.sharedCopyEngineCount = slices_of(mig.profile), engines.copy_engines
    info.sharedDecoderCount, info.sharedJpegCount = engines.decoder, engines.jpeg
    info.sharedOfaCount = engines.ofa
    info.multiprocessorCount = mig.sm or 0
    return info
