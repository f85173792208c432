"""ECC, retired pages, row remaps, recovery; and field values."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import pynvml

from hal import RecoveryAction
from hal.nvml.api import Code
from sim.nvml.abi import COUNT, DEVICE, U32, Function, Source, array, inout_by, out
from sim.nvml.call import NvmlFailure, choice, known
from sim.nvml.functions.board import limit_mw, limits_mw, power_mw, thermal
from sim.nvml.functions.inventory import architecture

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.nvml.call import NvmlCall


_AMPERE = 7
_DRAM = 2
_BANKS = 512
"""Assumed: banks of memory that still have all of their spare rows."""


def has_ecc(call: NvmlCall) -> None:
    """Raise `NvmlFailure` (not supported) for a board without ECC memory."""
    if not call.profile.ecc:
        raise NvmlFailure(Code.NOT_SUPPORTED)


def errors(call: NvmlCall, *, uncorrected: bool) -> int:
    """ECC errors since the driver was loaded."""
    has_ecc(call)
    return call.gpu.uncorrectable_ecc if uncorrected else call.gpu.corrected_ecc


def _total(call: NvmlCall) -> int:
    kind, counter = call.numbers
    choice(counter, 0, 1)
    return errors(call, uncorrected=choice(kind, 0, 1) == 1)


def _at_location(call: NvmlCall) -> int:
    kind, counter, location = call.numbers
    choice(counter, 0, 1)
    choice(location, *range(8))
    count = errors(call, uncorrected=choice(kind, 0, 1) == 1)
    return count if location == _DRAM else 0


def _detailed(call: NvmlCall) -> ctypes.Structure:
    counts: ctypes.Structure = pynvml.c_nvmlEccErrorCounts_t(deviceMemory=_total(call))
    return counts


def _modes(call: NvmlCall) -> tuple[int, int]:
    has_ecc(call)
    return 1, 1


def _default_mode(call: NvmlCall) -> int:
    has_ecc(call)
    return 1


def has_row_remapper(call: NvmlCall) -> bool:
    """True for boards with ECC from Ampere on; those before retire pages."""
    return bool(call.profile.ecc) and architecture(call.gpu) >= _AMPERE


def _rows(call: NvmlCall) -> tuple[int, int, int, int]:
    if not has_row_remapper(call):
        raise NvmlFailure(Code.NOT_SUPPORTED)
    return 0, 0, int(call.gpu.row_remap_pending), int(call.gpu.row_remap_failed)


def _histogram(call: NvmlCall) -> ctypes.Structure:
    if not has_row_remapper(call):
        raise NvmlFailure(Code.NOT_SUPPORTED)
    values: ctypes.Structure = pynvml.c_nvmlRowRemapperHistogramValues(max=_BANKS)
    return values


def _retires_pages(call: NvmlCall) -> None:
    has_ecc(call)
    if has_row_remapper(call):
        raise NvmlFailure(Code.NOT_SUPPORTED)


def _after(
    check: Callable[[NvmlCall], None], *lists: list[int]
) -> Callable[[NvmlCall], tuple[list[int], ...]]:
    def response(call: NvmlCall) -> tuple[list[int], ...]:
        check(call)
        choice(call.numbers[0], 0, 1)
        return lists

    return response


def _no_page_pending(call: NvmlCall) -> int:
    _retires_pages(call)
    return 0


_U64 = ctypes.c_uint64

FUNCTIONS = (
    Function("nvmlDeviceGetEccMode", (DEVICE, out(), out()), Source.CONSTANT, _modes),
    Function("nvmlDeviceGetDefaultEccMode", (DEVICE, out()), Source.CONSTANT, _default_mode),
    Function(
        "nvmlDeviceGetTotalEccErrors",
        (DEVICE, U32, U32, out(_U64)),
        Source.LIVE,
        _total,
        "aggregate counters are as the volatile ones",
    ),
    Function(
        "nvmlDeviceGetMemoryErrorCounter",
        (DEVICE, U32, U32, U32, out(_U64)),
        Source.LIVE,
        _at_location,
        "all errors are in DRAM",
    ),
    Function(
        "nvmlDeviceGetDetailedEccErrors",
        (DEVICE, U32, U32, out(pynvml.c_nvmlEccErrorCounts_t)),
        Source.LIVE,
        _detailed,
        "all errors are in DRAM",
    ),
    Function(
        "nvmlDeviceGetRemappedRows",
        (DEVICE, out(), out(), out(), out()),
        Source.LIVE,
        _rows,
        "pending and failed are live, the counts 0; Ampere and later with ECC",
    ),
    Function(
        "nvmlDeviceGetRowRemapperHistogram",
        (DEVICE, out(pynvml.c_nvmlRowRemapperHistogramValues)),
        Source.ASSUMED,
        _histogram,
        f"{_BANKS} banks, all with all spare rows",
    ),
    Function(
        "nvmlDeviceGetRetiredPages",
        (DEVICE, U32, COUNT, array(_U64, 2, asks=True)),
        Source.CONSTANT,
        _after(_retires_pages, []),
        "none; before Ampere",
    ),
    Function(
        "nvmlDeviceGetRetiredPages_v2",
        (DEVICE, U32, COUNT, array(_U64, 2, asks=True), array(_U64, 2, asks=True)),
        Source.CONSTANT,
        _after(_retires_pages, [], []),
        "none; before Ampere",
    ),
    Function(
        "nvmlDeviceGetRetiredPagesPendingStatus",
        (DEVICE, out()),
        Source.CONSTANT,
        _no_page_pending,
        "none; before Ampere",
    ),
)


_ACTIONS = {
    RecoveryAction.NONE: 0,
    RecoveryAction.RESET: 1,
    RecoveryAction.REBOOT: 2,
    RecoveryAction.DRAIN_P2P: 3,
    RecoveryAction.DRAIN_AND_RESET: 4,
}


def _recovery_action(call: NvmlCall) -> int:
    return known(_ACTIONS.get(call.gpu.recovery_action))


def _ecc_mode(call: NvmlCall) -> int:
    has_ecc(call)
    return 1


def _row_flag(read: Callable[[NvmlCall], bool]) -> Callable[[NvmlCall], int]:
    def response(call: NvmlCall) -> int:
        if not has_row_remapper(call):
            raise NvmlFailure(Code.NOT_SUPPORTED)
        return int(read(call))

    return response


def _margin(read: Callable[[NvmlCall], int | None]) -> Callable[[NvmlCall], int]:
    def response(call: NvmlCall) -> int:
        thermal(call, "margin")
        return known(read(call))

    return response


def _links(call: NvmlCall) -> int:
    return 0 if call.profile.nvlink is None else call.profile.nvlink.links


FIELDS: dict[int, Callable[[NvmlCall], int]] = {
    pynvml.NVML_FI_DEV_ECC_CURRENT: _ecc_mode,
    pynvml.NVML_FI_DEV_ECC_PENDING: _ecc_mode,
    pynvml.NVML_FI_DEV_ECC_SBE_VOL_TOTAL: lambda call: errors(call, uncorrected=False),
    pynvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL: lambda call: errors(call, uncorrected=True),
    pynvml.NVML_FI_DEV_ECC_SBE_AGG_TOTAL: lambda call: errors(call, uncorrected=False),
    pynvml.NVML_FI_DEV_ECC_DBE_AGG_TOTAL: lambda call: errors(call, uncorrected=True),
    pynvml.NVML_FI_DEV_NVLINK_LINK_COUNT: _links,
    pynvml.NVML_FI_DEV_PCIE_REPLAY_COUNTER: lambda _: 0,
    pynvml.NVML_FI_DEV_REMAPPED_COR: _row_flag(lambda _: False),
    pynvml.NVML_FI_DEV_REMAPPED_UNC: _row_flag(lambda _: False),
    pynvml.NVML_FI_DEV_REMAPPED_PENDING: _row_flag(lambda call: call.gpu.row_remap_pending),
    pynvml.NVML_FI_DEV_REMAPPED_FAILURE: _row_flag(lambda call: call.gpu.row_remap_failed),
    185: power_mw,
    186: power_mw,
    187: lambda call: limits_mw(call)[0],
    188: lambda call: limits_mw(call)[1],
    189: limit_mw,
    190: limit_mw,
    193: _margin(lambda call: thermal(call, "margin").shutdown),
    194: _margin(lambda call: thermal(call, "margin").slowdown),
    196: _margin(lambda _: 0),
    230: _recovery_action,
}
"""By NVML's field id. Those from 185 on have no names in older bindings: power (average, instant,
least, most, default and present limit), margins (shutdown, slowdown, most) and recovery action."""

_SIGNED = frozenset({193, 194, 196})


def _fill(call: NvmlCall) -> list[ctypes.Structure]:
    return [_filled(call, one) for one in call.structures]


def _filled(call: NvmlCall, value: ctypes.Structure) -> ctypes.Structure:
    value.timestamp, value.latencyUsec = int(call.node.now_s * 1e6), 0
    response = FIELDS.get(value.fieldId)
    if response is None:
        value.nvmlReturn = Code.NOT_SUPPORTED
        return value
    try:
        number = response(call)
    except NvmlFailure as failure:
        value.nvmlReturn = failure.code
        return value
    value.nvmlReturn = Code.SUCCESS
    if value.fieldId in _SIGNED:
        value.valueType, value.value.siVal = pynvml.NVML_VALUE_TYPE_SIGNED_INT, number
    else:
        value.valueType, value.value.ullVal = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, number
    return value


FIELD_FUNCTIONS = (
    Function(
        "nvmlDeviceGetFieldValues",
        (DEVICE, U32, inout_by(pynvml.c_nvmlFieldValue_t, 1)),
        Source.LIVE,
        _fill,
        "ECC, rows, power, margins, recovery action, replays, number of NVLinks",
    ),
)
