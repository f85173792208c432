"""Clocks, power and temperature."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import TYPE_CHECKING

import pynvml

from hal import ThrottleReason
from hal.nvml.api import Code
from sim.nvml.abi import (
    ASSUMED,
    CONSTANT,
    COUNT,
    DEVICE,
    LIVE,
    U32,
    Functions,
    array,
    out,
    version,
    versioned,
)
from sim.nvml.call import NvmlFailure, choice, known
from sim.nvml.functions.inventory import architecture, is_geforce

if TYPE_CHECKING:
    from sim.gpu.profiles import Thermal
    from sim.nvml.call import NvmlCall

function = Functions()

_GRAPHICS, _SM, _MEMORY, _VIDEO = range(4)
_CURRENT, _TARGET, _DEFAULT_TARGET, _BOOST_MAX = range(4)
_SHUTDOWN, _SLOWDOWN, _MEM_MAX, _GPU_MAX = range(4)
_CLOCK_STEP_MHZ = 15
_IDLE_PSTATE_GEFORCE = 8
_ADA, _HOPPER = 8, 9
_CLOCKS = "graphics, SM, memory, and video where a source has it"

_REASONS = {
    ThrottleReason.IDLE: 0x01,
    ThrottleReason.POWER_CAP: 0x04,
    ThrottleReason.THERMAL_SOFTWARE: 0x20,
    ThrottleReason.THERMAL_HARDWARE: 0x08 | 0x40,
    ThrottleReason.POWER_BRAKE: 0x08 | 0x80,
}
_SUPPORTED_REASONS = 0x1FF


class PowerScope(IntEnum):
    """What a power field is about."""

    GPU = 0
    MODULE = 1
    MEMORY = 2
    GPU_BASE = 3


def _of_clock(clock: int, sm: int | None, memory: int | None, video: int | None) -> int:
    match choice(clock, _GRAPHICS, _SM, _MEMORY, _VIDEO):
        case 0 | 1:
            return known(sm)
        case 2:
            return known(memory)
        case _:
            return known(video)


@function(LIVE, "nvmlDeviceGetClockInfo", DEVICE, U32, out(), note=_CLOCKS)
def _clock_info(call: NvmlCall) -> int:
    reading = call.gpu.telemetry(call.node.now_s)
    clocks = call.profile.clocks_mhz
    video = clocks.video_max if reading.utilization else clocks.video_idle
    return _of_clock(call.numbers[0], reading.sm_clock_mhz, reading.memory_clock_mhz, video)


@function(LIVE, "nvmlDeviceGetClock", DEVICE, U32, U32, out(), note=_CLOCKS)
def _clock(call: NvmlCall) -> int:
    which = choice(call.numbers[1], _CURRENT, _TARGET, _DEFAULT_TARGET, _BOOST_MAX)
    return _clock_info(call) if which == _CURRENT else _max_clock(call)


@function(
    CONSTANT,
    "nvmlDeviceGetMaxClockInfo nvmlDeviceGetApplicationsClock "
    "nvmlDeviceGetDefaultApplicationsClock nvmlDeviceGetMaxCustomerBoostClock",
    *(DEVICE, U32, out()),
    note=_CLOCKS,
)
def _max_clock(call: NvmlCall) -> int:
    clocks = call.profile.clocks_mhz
    return _of_clock(call.numbers[0], clocks.sm_max, clocks.memory, clocks.video_max)


@function(CONSTANT, "nvmlDeviceGetSupportedMemoryClocks", DEVICE, COUNT, array(ctypes.c_uint32, 1))
def _memory_clocks(call: NvmlCall) -> list[int]:
    return [known(call.profile.clocks_mhz.memory)]


@function(
    ASSUMED,
    "nvmlDeviceGetSupportedGraphicsClocks",
    *(DEVICE, U32, COUNT, array(ctypes.c_uint32, 2)),
    note=f"in steps of {_CLOCK_STEP_MHZ} MHz",
)
def _graphics_clocks(call: NvmlCall) -> list[int]:
    if call.numbers[0] != known(call.profile.clocks_mhz.memory):
        raise NvmlFailure(Code.NOT_FOUND)
    most = known(call.profile.clocks_mhz.sm_max)
    least = call.profile.clocks_mhz.sm_idle or most
    return list(range(most, least - 1, -_CLOCK_STEP_MHZ))


@function(
    LIVE,
    "nvmlDeviceGetCurrentClocksEventReasons nvmlDeviceGetCurrentClocksThrottleReasons",
    *(DEVICE, out(ctypes.c_uint64)),
)
def _reasons(call: NvmlCall) -> int:
    present = call.gpu.telemetry(call.node.now_s).throttle_reasons
    return sum(bit for reason, bit in _REASONS.items() if reason in present)


function(
    CONSTANT,
    "nvmlDeviceGetSupportedClocksEventReasons nvmlDeviceGetSupportedClocksThrottleReasons",
    *(DEVICE, out(ctypes.c_uint64)),
)(lambda _: _SUPPORTED_REASONS)

_PSTATES = "nvmlDeviceGetPerformanceState nvmlDeviceGetPowerState"


@function(LIVE, _PSTATES, DEVICE, out(), note="P0; P8 on an idle GeForce")
def _performance_state(call: NvmlCall) -> int:
    idle = call.gpu.telemetry(call.node.now_s).utilization == 0
    return _IDLE_PSTATE_GEFORCE if idle and is_geforce(call.gpu) else 0


@function(LIVE, "nvmlDeviceGetPowerUsage", DEVICE, out())
def power_mw(call: NvmlCall) -> int:
    return _milli(call.gpu.telemetry(call.node.now_s).power_w)


@function(
    LIVE, "nvmlDeviceGetTotalEnergyConsumption", DEVICE, out(ctypes.c_uint64), note="from Volta on"
)
def energy_mj(call: NvmlCall) -> int:
    """Since the driver was loaded, or the GPU reset."""
    return _milli(call.gpu.energy_j(call.node.now_s))


def average_power_mw(call: NvmlCall) -> int:
    """The average has a field of its own from Ada on."""
    if architecture(call.gpu) < _ADA:
        raise NvmlFailure(Code.NOT_SUPPORTED)
    return power_mw(call)


_MEMORY_POWER_SHARE = 0.48
"""Assumed: the memory's part of the idle board's power, as in a capture of an H100."""


def memory_power_mw(call: NvmlCall) -> int:
    """Average power of the memory, which boards with HBM report from Hopper on."""
    if architecture(call.gpu) < _HOPPER or not call.profile.mig:
        raise NvmlFailure(Code.NOT_SUPPORTED)
    return round(_milli(call.profile.power_w.idle) * _MEMORY_POWER_SHARE)


_LIMITS = "nvmlDeviceGetPowerManagementLimit nvmlDeviceGetEnforcedPowerLimit"


@function(LIVE, _LIMITS, DEVICE, out())
def limit_mw(call: NvmlCall) -> int:
    return _milli(call.gpu.power_limit_w)


@function(CONSTANT, "nvmlDeviceGetPowerManagementDefaultLimit", DEVICE, out())
def default_limit_mw(call: NvmlCall) -> int:
    return _milli(call.profile.power_w.default_limit)


@function(
    LIVE,
    "nvmlDeviceSetPowerManagementLimit",
    *(DEVICE, U32),
    note="lowers the clocks; until the next reset",
    changes=True,
)
def _set_limit(call: NvmlCall) -> tuple[()]:
    return _limited(call, call.numbers[0])


def _limited(call: NvmlCall, wanted_mw: int) -> tuple[()]:
    least, most = limits_mw(call)
    if not least <= wanted_mw <= most:
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    call.gpu.set_power_limit(wanted_mw / 1000, call.node.now_s)
    return ()


_POWER_VALUE_V2 = versioned(version(pynvml.c_nvmlPowerValue_v2_t, 2))


@function(
    LIVE,
    "nvmlDeviceSetPowerManagementLimit_v2",
    *(DEVICE, _POWER_VALUE_V2),
    note="of the board, not of a module",
    changes=True,
)
def _set_limit_v2(call: NvmlCall) -> ctypes.Structure:
    wanted = call.structure(pynvml.c_nvmlPowerValue_v2_t)
    if choice(wanted.powerScope, *PowerScope) != PowerScope.GPU:
        raise NvmlFailure(Code.NOT_SUPPORTED)
    _limited(call, wanted.powerValueMw)
    return wanted


@function(CONSTANT, "nvmlDeviceGetPowerManagementLimitConstraints", DEVICE, out(), out())
def limits_mw(call: NvmlCall) -> tuple[int, int]:
    return _milli(call.profile.power_w.min_limit), _milli(call.profile.power_w.max_limit)


def _milli(value: float | None) -> int:
    if value is None:
        raise NvmlFailure(Code.NOT_SUPPORTED)
    return round(value * 1000)


function(CONSTANT, "nvmlDeviceGetPowerManagementMode", DEVICE, out(), note="on")(lambda _: 1)


def _temperature_c(call: NvmlCall) -> int:
    value = call.gpu.telemetry(call.node.now_s).temperature_c
    if value is None:
        raise NvmlFailure(Code.NOT_SUPPORTED)
    return round(value)


@function(LIVE, "nvmlDeviceGetTemperature", DEVICE, U32, out())
def _temperature(call: NvmlCall) -> int:
    choice(call.numbers[0], 0)
    return _temperature_c(call)


_TEMPERATURE_V1 = versioned(version(pynvml.c_nvmlTemperature_v1_t, 1))


@function(LIVE, "nvmlDeviceGetTemperatureV", DEVICE, _TEMPERATURE_V1)
def _temperature_v(call: NvmlCall) -> ctypes.Structure:
    info = call.structure(pynvml.c_nvmlTemperature_v1_t)
    choice(info.sensorType, 0)
    info.temperature = _temperature_c(call)
    return info


def thermal(call: NvmlCall, style: str) -> Thermal:
    """The board's limits in this style; raises `NvmlFailure` (not supported) without them."""
    limits = call.profile.thermal_c
    if limits is None or limits.style != style:
        raise NvmlFailure(Code.NOT_SUPPORTED)
    return limits


_REPORT_TEMPERATURES = "boards that report temperatures"


@function(
    CONSTANT, "nvmlDeviceGetTemperatureThreshold", DEVICE, U32, out(), note=_REPORT_TEMPERATURES
)
def _threshold(call: NvmlCall) -> int:
    wanted = choice(call.numbers[0], *range(8))
    limits = thermal(call, "absolute")
    values = {
        _SHUTDOWN: limits.shutdown,
        _SLOWDOWN: limits.slowdown,
        _GPU_MAX: limits.max_operating,
    }
    return known(values.get(wanted))


_MARGIN_V1 = versioned(version(pynvml.c_nvmlMarginTemperature_v1_t, 1))


@function(
    LIVE, "nvmlDeviceGetMarginTemperature", DEVICE, _MARGIN_V1, note="boards that report margins"
)
def _margin(call: NvmlCall) -> ctypes.Structure:
    limits = thermal(call, "margin")
    info = call.structure(pynvml.c_nvmlMarginTemperature_v1_t)
    info.marginTemperature = known(limits.max_operating) - _temperature_c(call)
    return info


function(CONSTANT, "nvmlDeviceGetNumFans", DEVICE, out(), note="0")(lambda _: 0)
