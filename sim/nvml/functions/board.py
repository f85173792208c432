"""Clocks, power and temperature."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import pynvml

from hal import ThrottleReason
from hal.nvml.api import Code
from sim.nvml.abi import COUNT, DEVICE, U32, Function, Source, array, out, version, versioned
from sim.nvml.call import NvmlFailure, choice, known
from sim.nvml.functions.inventory import is_geforce

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.gpu.gpu import SimulatedGpu
    from sim.gpu.profiles import Thermal
    from sim.nvml.call import NvmlCall

_GRAPHICS, _SM, _MEMORY, _VIDEO = range(4)
_CURRENT, _TARGET, _DEFAULT_TARGET, _BOOST_MAX = range(4)
_SHUTDOWN, _SLOWDOWN, _MEM_MAX, _GPU_MAX = range(4)
_CLOCK_STEP_MHZ = 15
_IDLE_PSTATE_GEFORCE = 8

_REASONS = {
    ThrottleReason.IDLE: 0x01,
    ThrottleReason.POWER_CAP: 0x04,
    ThrottleReason.THERMAL_SOFTWARE: 0x20,
    ThrottleReason.THERMAL_HARDWARE: 0x08 | 0x40,
    ThrottleReason.POWER_BRAKE: 0x08 | 0x80,
}
_SUPPORTED_REASONS = 0x1FF


def clock_mhz(call: NvmlCall, clock: int) -> int:
    reading = call.gpu.telemetry(call.node.now_s)
    match choice(clock, _GRAPHICS, _SM, _MEMORY, _VIDEO):
        case 0 | 1:
            return known(reading.sm_clock_mhz)
        case 2:
            return known(reading.memory_clock_mhz)
    raise NvmlFailure(Code.NOT_SUPPORTED)


def _max_clock_mhz(call: NvmlCall, clock: int) -> int:
    match choice(clock, _GRAPHICS, _SM, _MEMORY, _VIDEO):
        case 0 | 1:
            return known(call.profile.clocks_mhz.sm_max)
        case 2:
            return known(call.profile.clocks_mhz.memory)
    raise NvmlFailure(Code.NOT_SUPPORTED)


def _clock(call: NvmlCall) -> int:
    clock, which = call.numbers
    if choice(which, _CURRENT, _TARGET, _DEFAULT_TARGET, _BOOST_MAX) == _CURRENT:
        return clock_mhz(call, clock)
    return _max_clock_mhz(call, clock)


def _graphics_clocks(call: NvmlCall) -> list[int]:
    if call.numbers[0] != known(call.profile.clocks_mhz.memory):
        raise NvmlFailure(Code.NOT_FOUND)
    most = known(call.profile.clocks_mhz.sm_max)
    least = call.profile.clocks_mhz.sm_idle or most
    return list(range(most, least - 1, -_CLOCK_STEP_MHZ))


def _reasons(call: NvmlCall) -> int:
    present = call.gpu.telemetry(call.node.now_s).throttle_reasons
    return sum(bit for reason, bit in _REASONS.items() if reason in present)


def _performance_state(call: NvmlCall) -> int:
    idle = call.gpu.telemetry(call.node.now_s).utilization == 0
    return _IDLE_PSTATE_GEFORCE if idle and is_geforce(call.gpu) else 0


def power_mw(call: NvmlCall) -> int:
    return _milli(call.gpu.telemetry(call.node.now_s).power_w)


def limit_mw(call: NvmlCall) -> int:
    return _milli(call.profile.power_w.default_limit)


def limits_mw(call: NvmlCall) -> tuple[int, int]:
    return _milli(call.profile.power_w.min_limit), _milli(call.profile.power_w.max_limit)


def _milli(value: float | None) -> int:
    if value is None:
        raise NvmlFailure(Code.NOT_SUPPORTED)
    return round(value * 1000)


def temperature_c(gpu: SimulatedGpu, now_s: float) -> int:
    value = gpu.telemetry(now_s).temperature_c
    if value is None:
        raise NvmlFailure(Code.NOT_SUPPORTED)
    return round(value)


def _temperature(call: NvmlCall) -> int:
    choice(call.numbers[0], 0)
    return temperature_c(call.gpu, call.node.now_s)


def _temperature_v(call: NvmlCall) -> ctypes.Structure:
    info = call.structure(pynvml.c_nvmlTemperature_v1_t)
    choice(info.sensorType, 0)
    info.temperature = temperature_c(call.gpu, call.node.now_s)
    return info


def thermal(call: NvmlCall, style: str) -> Thermal:
    """The board's limits in this style; raises `NvmlFailure` (not supported) without them."""
    limits = call.profile.thermal_c
    if limits is None or limits.style != style:
        raise NvmlFailure(Code.NOT_SUPPORTED)
    return limits


def _threshold(call: NvmlCall) -> int:
    wanted = choice(call.numbers[0], *range(8))
    limits = thermal(call, "absolute")
    values = {
        _SHUTDOWN: limits.shutdown,
        _SLOWDOWN: limits.slowdown,
        _GPU_MAX: limits.max_operating,
    }
    return known(values.get(wanted))


def _margin(call: NvmlCall) -> ctypes.Structure:
    limits = thermal(call, "margin")
    info = call.structure(pynvml.c_nvmlMarginTemperature_v1_t)
    now_c = temperature_c(call.gpu, call.node.now_s)
    info.marginTemperature = known(limits.max_operating) - now_c
    return info


def _of_clock(response: Callable[[NvmlCall, int], int]) -> Callable[[NvmlCall], int]:
    return lambda call: response(call, call.numbers[0])


_LIVE, _CONSTANT = Source.LIVE, Source.CONSTANT
_NO_VIDEO = "graphics, SM and memory"

FUNCTIONS = (
    Function(
        "nvmlDeviceGetClockInfo", (DEVICE, U32, out()), _LIVE, _of_clock(clock_mhz), _NO_VIDEO
    ),
    Function("nvmlDeviceGetClock", (DEVICE, U32, U32, out()), _LIVE, _clock, _NO_VIDEO),
    *(
        Function(name, (DEVICE, U32, out()), _CONSTANT, _of_clock(_max_clock_mhz), _NO_VIDEO)
        for name in (
            "nvmlDeviceGetMaxClockInfo",
            "nvmlDeviceGetApplicationsClock",
            "nvmlDeviceGetDefaultApplicationsClock",
            "nvmlDeviceGetMaxCustomerBoostClock",
        )
    ),
    Function(
        "nvmlDeviceGetSupportedMemoryClocks",
        (DEVICE, COUNT, array(ctypes.c_uint32, 1)),
        _CONSTANT,
        lambda call: [known(call.profile.clocks_mhz.memory)],
    ),
    Function(
        "nvmlDeviceGetSupportedGraphicsClocks",
        (DEVICE, U32, COUNT, array(ctypes.c_uint32, 2)),
        Source.ASSUMED,
        _graphics_clocks,
        f"in steps of {_CLOCK_STEP_MHZ} MHz",
    ),
    *(
        Function(name, (DEVICE, out(ctypes.c_uint64)), _LIVE, _reasons)
        for name in (
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetCurrentClocksThrottleReasons",
        )
    ),
    *(
        Function(name, (DEVICE, out(ctypes.c_uint64)), _CONSTANT, lambda _: _SUPPORTED_REASONS)
        for name in (
            "nvmlDeviceGetSupportedClocksEventReasons",
            "nvmlDeviceGetSupportedClocksThrottleReasons",
        )
    ),
    *(
        Function(name, (DEVICE, out()), _LIVE, _performance_state, "P0; P8 on an idle GeForce")
        for name in ("nvmlDeviceGetPerformanceState", "nvmlDeviceGetPowerState")
    ),
    Function("nvmlDeviceGetPowerUsage", (DEVICE, out()), _LIVE, power_mw),
    *(
        Function(name, (DEVICE, out()), _CONSTANT, limit_mw)
        for name in (
            "nvmlDeviceGetPowerManagementLimit",
            "nvmlDeviceGetPowerManagementDefaultLimit",
            "nvmlDeviceGetEnforcedPowerLimit",
        )
    ),
    Function(
        "nvmlDeviceGetPowerManagementLimitConstraints", (DEVICE, out(), out()), _CONSTANT, limits_mw
    ),
    Function("nvmlDeviceGetPowerManagementMode", (DEVICE, out()), _CONSTANT, lambda _: 1, "on"),
    Function("nvmlDeviceGetTemperature", (DEVICE, U32, out()), _LIVE, _temperature),
    Function(
        "nvmlDeviceGetTemperatureV",
        (DEVICE, versioned(version(pynvml.c_nvmlTemperature_v1_t, 1))),
        _LIVE,
        _temperature_v,
    ),
    Function(
        "nvmlDeviceGetTemperatureThreshold",
        (DEVICE, U32, out()),
        _CONSTANT,
        _threshold,
        "boards that report temperatures",
    ),
    Function(
        "nvmlDeviceGetMarginTemperature",
        (DEVICE, versioned(version(pynvml.c_nvmlMarginTemperature_v1_t, 1))),
        _LIVE,
        _margin,
        "boards that report margins",
    ),
    Function("nvmlDeviceGetNumFans", (DEVICE, out()), _CONSTANT, lambda _: 0, "0"),
)
