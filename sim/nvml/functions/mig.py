"""MIG modes, MIG devices, and where instances sit in the eight memory slices of a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pynvml

from hal import GIB
from hal.nvml.api import Code
from sim.gpu.profiles import COMPUTE_SLICES, MEMORY_SLICES, MIB
from sim.nvml.abi import CONSTANT, DEVICE, LIVE, U32, Device, Functions, out
from sim.nvml.call import NvmlFailure

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Mapping, Sequence

    from hal import MigDevice
    from sim.gpu.profiles import MigProfile, Profile
    from sim.nvml.call import NvmlCall

function = Functions()

_STARTS: Mapping[int, Sequence[int]] = {
    1: (0, 1, 2, 3, 4, 5, 6),
    2: (0, 2, 4, 6),
    4: (0, 4),
    8: (0,),
}
"""By the number of memory slices, from NVIDIA's MIG user guide."""


def width(mig: MigProfile, profile: Profile) -> int:
    named_gib = int(mig.profile.partition(".")[2].partition("gb")[0])
    slices = max(1, round(MEMORY_SLICES * named_gib * GIB / profile.memory_bytes))
    return next((size for size in _STARTS if size >= slices), MEMORY_SLICES)


def possible_starts(mig: MigProfile, profile: Profile) -> Sequence[int]:
    slices = int(mig.profile.partition("g.")[0])
    starts = _STARTS[width(mig, profile)]
    if slices == 4:
        return starts[:1]
    return starts[:3] if slices == 2 else starts


def placements(devices: Sequence[MigDevice], profile: Profile) -> Mapping[int, tuple[int, int]]:
    """Start and size by GPU instance id, each at the first place that is free in this order."""
    by_name = {mig.profile: mig for mig in profile.mig}
    used: set[int] = set()
    found: dict[int, tuple[int, int]] = {}
    for device in devices:
        mig = by_name[device.profile]
        size = width(mig, profile)
        starts = possible_starts(mig, profile)
        start = next((one for one in starts if used.isdisjoint(range(one, one + size))), starts[0])
        used.update(range(start, start + size))
        found[device.gpu_instance] = (start, size)
    return found


def can_mig(call: NvmlCall) -> None:
    """Raise `NvmlFailure` (not supported) for a model that cannot be partitioned."""
    if not call.profile.mig:
        raise NvmlFailure(Code.NOT_SUPPORTED)


def slices_of(profile: str) -> int:
    """The 3 of `3g.40gb`."""
    return int(profile.partition("g.")[0])


def profile_of(call: NvmlCall, device: MigDevice) -> MigProfile:
    return next(one for one in call.profile.mig if one.profile == device.profile)


@function(LIVE, "nvmlDeviceGetMigMode", DEVICE, out(), out())
def _mode(call: NvmlCall) -> tuple[int, int]:
    can_mig(call)
    return int(call.gpu.identity.mig_enabled), int(call.gpu.identity.mig_enabled)


@function(LIVE, "nvmlDeviceGetMaxMigDeviceCount", DEVICE, out())
def _max_devices(call: NvmlCall) -> int:
    return COMPUTE_SLICES if call.gpu.identity.mig_enabled else 0


@function(LIVE, "nvmlDeviceGetMigDeviceHandleByIndex", DEVICE, U32, out(Device))
def _device_by_index(call: NvmlCall) -> int:
    can_mig(call)
    if call.numbers[0] >= COMPUTE_SLICES:
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    for device in call.gpu.identity.mig_devices:
        if device.index == call.numbers[0]:
            return call.handles.of(("mig", device.uuid))
    raise NvmlFailure(Code.NOT_FOUND)


@function(CONSTANT, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", DEVICE, out(Device), mig=True)
def _parent(call: NvmlCall) -> int:
    if call.mig is None:
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    return call.handle_of_gpu(call.gpu)


@function(
    CONSTANT,
    "nvmlDeviceGetAttributes nvmlDeviceGetAttributes_v2",
    *(DEVICE, out(pynvml.c_nvmlDeviceAttributes)),
    note="one copy engine for each slice, no video engines",
    mig=True,
)
def _attributes(call: NvmlCall) -> ctypes.Structure:
    device = call.mig_device
    slices = slices_of(device.profile)
    attributes: ctypes.Structure = pynvml.c_nvmlDeviceAttributes(
        multiprocessorCount=profile_of(call, device).sm or 0,
        sharedCopyEngineCount=slices,
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
