"""GPM: metrics between two samples of a GPU or MIG device, on Hopper and later.

The library takes a request for metrics apart (`library/gpm.c`) and passes on ids alone.
"""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hal.nvml.api import Code
from sim.gpu.instances import device_of
from sim.nvml.abi import (
    CONSTANT,
    DEVICE,
    GPM_SAMPLE,
    LIVE,
    U32,
    Functions,
    GpmSample,
    inout,
    inout_by,
    out,
)
from sim.nvml.call import NvmlFailure, choice

if TYPE_CHECKING:
    from hal import MigDevice
    from sim.gpu.gpu import SimulatedGpu
    from sim.nvml.call import NvmlCall

function = Functions()

_HOPPER = (9, 0)
_FIRST = 0x5347_5000_0000
_GRAPHICS_UTIL, _SM_UTIL, _DRAM = 1, 2, 10
_PCIE = (20, 21)
_NVLINK = (60, 61)


class GpmSupport(ctypes.Structure):
    """Its version is a plain 1, without the size."""

    _fields_: ClassVar = [("version", ctypes.c_uint32), ("isSupportedDevice", ctypes.c_uint32)]


class GpmMetric(ctypes.Structure):
    """A metric as the library passes it on: without the names, which it knows itself."""

    _fields_: ClassVar = [
        ("metricId", ctypes.c_uint32),
        ("nvmlReturn", ctypes.c_int32),
        ("value", ctypes.c_double),
    ]


@dataclass(frozen=True, slots=True)
class _Reading:
    """What a sample holds: seconds in which kernels ran, and the constant load beside them."""

    place: str
    at_s: float
    busy_s: float
    constant: float
    load: float
    has_nvlink: bool


_MOST_SAMPLES = 4096


class GpmSamples:
    """All samples of all processes; its callers hold the node still."""

    def __init__(self) -> None:
        self._owners: dict[int, int] = {}
        self._readings: dict[int, _Reading] = {}
        self._handles = itertools.count(_FIRST, 0x40)

    def allocate(self, session: int) -> int:
        if len(self._owners) >= _MOST_SAMPLES:
            raise NvmlFailure(Code.INSUFFICIENT_RESOURCES)
        handle = next(self._handles)
        self._owners[handle] = session
        return handle

    def free(self, handle: int) -> None:
        if self._owners.pop(handle, None) is None:
            raise NvmlFailure(Code.INVALID_ARGUMENT)
        self._readings.pop(handle, None)

    def end(self, session: int) -> None:
        for handle in [one for one, owner in self._owners.items() if owner == session]:
            self.free(handle)

    def take(self, handle: int, reading: _Reading) -> None:
        if handle not in self._owners:
            raise NvmlFailure(Code.INVALID_ARGUMENT)
        self._readings[handle] = reading

    def reading(self, handle: int) -> _Reading:
        """What the sample holds; raises `NvmlFailure` for one that was not taken."""
        found = self._readings.get(handle)
        if found is None:
            raise NvmlFailure(Code.INVALID_ARGUMENT)
        return found


def _supported(call: NvmlCall) -> None:
    if call.profile.compute_capability < _HOPPER or call.profile.tegra:
        raise NvmlFailure(Code.NOT_SUPPORTED)


@function(CONSTANT, "nvmlGpmQueryDeviceSupport", DEVICE, inout(GpmSupport), note="Hopper and later")
def _query(call: NvmlCall) -> ctypes.Structure:
    support = call.structure(GpmSupport)
    if support.version != 1:
        raise NvmlFailure(Code.ARGUMENT_VERSION_MISMATCH)
    known = call.profile.compute_capability >= _HOPPER and not call.profile.tegra
    support.isSupportedDevice = int(known)
    return support


@function(CONSTANT, "nvmlGpmQueryIfStreamingEnabled", DEVICE, out(), note="off")
def _streaming(call: NvmlCall) -> int:
    _supported(call)
    return 0


@function(LIVE, "nvmlGpmSampleAlloc", out(GpmSample))
def _allocate(call: NvmlCall) -> int:
    return call.samples.allocate(call.session)


@function(LIVE, "nvmlGpmSampleFree", GPM_SAMPLE)
def _free(call: NvmlCall) -> tuple[()]:
    call.samples.free(call.numbers[0])
    return ()


@function(LIVE, "nvmlGpmSampleGet", DEVICE, GPM_SAMPLE)
def _sample(call: NvmlCall) -> tuple[()]:
    _supported(call)
    call.samples.take(call.numbers[0], _read(call, None))
    return ()


@function(LIVE, "nvmlGpmMigSampleGet", DEVICE, U32, GPM_SAMPLE)
def _sample_of_instance(call: NvmlCall) -> tuple[()]:
    _supported(call)
    number, handle = call.numbers
    instance = call.gpu.instances.get(number)
    device = None if instance is None else device_of(call.gpu, instance)
    if device is None:
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    call.samples.take(handle, _read(call, device))
    return ()


@function(
    LIVE,
    "nvmlGpmMetricsGet",
    *(GPM_SAMPLE, GPM_SAMPLE, U32, inout_by(GpmMetric, 2)),
    note="graphics and SM utilisation; 0 for DRAM, PCIe and NVLink; no others",
    inner=True,
)
def _metrics(call: NvmlCall) -> list[ctypes.Structure]:
    first, second = (call.samples.reading(handle) for handle in call.numbers[:2])
    choice(int(first.place == second.place), 1)
    return [_filled(metric, first, second) for metric in call.structures]


def _filled(metric: ctypes.Structure, first: _Reading, second: _Reading) -> ctypes.Structure:
    wanted = metric.metricId
    metric.nvmlReturn, metric.value = Code.SUCCESS, 0.0
    if wanted in (_GRAPHICS_UTIL, _SM_UTIL):
        metric.value = 100 * _utilization(first, second)
    elif wanted not in (_DRAM, *_PCIE, *(_NVLINK if second.has_nvlink else ())):
        metric.nvmlReturn = Code.NOT_SUPPORTED
    return metric


def _utilization(first: _Reading, second: _Reading) -> float:
    span_s = second.at_s - first.at_s
    if span_s <= 0:
        return second.load
    return min(1.0, max(0.0, (second.busy_s - first.busy_s) / span_s + second.constant))


def _read(call: NvmlCall, device: MigDevice | None) -> _Reading:
    gpu, now_s = call.gpu, call.node.now_s
    gpu.settle(now_s)
    place = gpu.identity.uuid if device is None else device.uuid
    constant = sum(tenant.utilization for _, tenant in gpu.tenants) if device is None else 0.0
    return _Reading(
        place=place,
        at_s=now_s,
        busy_s=_busy_s(gpu, device),
        constant=constant,
        load=gpu.load if device is None else gpu.tenancies[place].utilization,
        has_nvlink=bool(call.node.nvlinks[gpu.identity.index]),
    )


def _busy_s(gpu: SimulatedGpu, device: MigDevice | None) -> float:
    """Seconds of kernels up to now; on a whole GPU each MIG device counts with its share."""
    busy_s = 0.0
    for uuid, tenancy in gpu.tenancies.items():
        if device is None or device.uuid == uuid:
            tenancy.compute.catch_up()
            share = tenancy.compute_share if device is None else 1.0
            busy_s += tenancy.compute.scheduler.usage.active_ns / 1e9 * share
    return busy_s
