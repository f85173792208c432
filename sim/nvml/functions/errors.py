"""ECC, retired pages, row remaps, recovery; and field values."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import TYPE_CHECKING

import pynvml

from hal import RecoveryAction
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
    inout_by,
    out,
)
from sim.nvml.call import NvmlFailure, choice, known
from sim.nvml.functions.board import (
    PowerScope,
    average_power_mw,
    default_limit_mw,
    energy_mj,
    limit_mw,
    limits_mw,
    memory_power_mw,
    power_mw,
    thermal,
)
from sim.nvml.functions.inventory import architecture

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sim.gpu.profiles import Thermal
    from sim.gpu.returns import Answer
    from sim.nvml.call import NvmlCall

function, fields = Functions(), Functions()

_AMPERE = 7
_DRAM = 2
_U64 = ctypes.c_uint64
_BANKS = 512
"""Assumed: banks of memory that still have all of their spare rows."""


def has_ecc(call: NvmlCall) -> None:
    """Raise `NvmlFailure` (not supported) for a board without ECC memory."""
    if not call.profile.ecc:
        raise NvmlFailure(Code.NOT_SUPPORTED)


def _errors(call: NvmlCall, *, uncorrected: bool) -> int:
    """ECC errors since the driver was loaded."""
    has_ecc(call)
    return call.gpu.uncorrectable_ecc if uncorrected else call.gpu.corrected_ecc


@function(CONSTANT, "nvmlDeviceGetEccMode", DEVICE, out(), out())
def _modes(call: NvmlCall) -> tuple[int, int]:
    has_ecc(call)
    return 1, 1


@function(CONSTANT, "nvmlDeviceGetDefaultEccMode", DEVICE, out())
def _default_mode(call: NvmlCall) -> int:
    has_ecc(call)
    return 1


@function(
    LIVE,
    "nvmlDeviceGetTotalEccErrors",
    *(DEVICE, U32, U32, out(_U64)),
    note="aggregate counters are as the volatile ones",
)
def _total(call: NvmlCall) -> int:
    kind, counter = call.numbers[:2]
    choice(counter, 0, 1)
    return _errors(call, uncorrected=choice(kind, 0, 1) == 1)


_IN_DRAM = "all errors are in DRAM"


@function(LIVE, "nvmlDeviceGetMemoryErrorCounter", DEVICE, U32, U32, U32, out(_U64), note=_IN_DRAM)
def _at_location(call: NvmlCall) -> int:
    location = choice(call.numbers[2], *range(8))
    count = _total(call)
    return count if location == _DRAM else 0


@function(
    LIVE,
    "nvmlDeviceGetDetailedEccErrors",
    *(DEVICE, U32, U32, out(pynvml.c_nvmlEccErrorCounts_t)),
    note=_IN_DRAM,
)
def _detailed(call: NvmlCall) -> ctypes.Structure:
    counts: ctypes.Structure = pynvml.c_nvmlEccErrorCounts_t(deviceMemory=_total(call))
    return counts


def _has_row_remapper(call: NvmlCall) -> bool:
    """True for boards with ECC from Ampere on; those before retire pages."""
    return bool(call.profile.ecc) and architecture(call.gpu) >= _AMPERE


@function(
    LIVE,
    "nvmlDeviceGetRemappedRows",
    *(DEVICE, out(), out(), out(), out()),
    note="pending and failed are live, the counts 0; Ampere and later with ECC",
)
def _rows(call: NvmlCall) -> tuple[int, int, int, int]:
    if not _has_row_remapper(call):
        raise NvmlFailure(Code.NOT_SUPPORTED)
    return 0, 0, int(call.gpu.row_remap_pending), int(call.gpu.row_remap_failed)


@function(
    ASSUMED,
    "nvmlDeviceGetRowRemapperHistogram",
    *(DEVICE, out(pynvml.c_nvmlRowRemapperHistogramValues)),
    note=f"{_BANKS} banks where no source has them, all with all spare rows",
)
def _histogram(call: NvmlCall) -> ctypes.Structure:
    if not _has_row_remapper(call):
        raise NvmlFailure(Code.NOT_SUPPORTED)
    values: ctypes.Structure = pynvml.c_nvmlRowRemapperHistogramValues(
        max=call.profile.board.memory_banks or _BANKS
    )
    return values


_NO_PAGES = "none; before Ampere"
_PAGES = array(_U64, 2, asks=True)


@function(CONSTANT, "nvmlDeviceGetRetiredPages", DEVICE, U32, COUNT, _PAGES, note=_NO_PAGES)
def _pages(call: NvmlCall) -> list[int]:
    _no_page_pending(call)
    choice(call.numbers[0], 0, 1)
    return []


@function(
    CONSTANT, "nvmlDeviceGetRetiredPages_v2", DEVICE, U32, COUNT, _PAGES, _PAGES, note=_NO_PAGES
)
def _pages_v2(call: NvmlCall) -> tuple[list[int], list[int]]:
    return _pages(call), []


@function(CONSTANT, "nvmlDeviceGetRetiredPagesPendingStatus", DEVICE, out(), note=_NO_PAGES)
def _no_page_pending(call: NvmlCall) -> int:
    has_ecc(call)
    if _has_row_remapper(call):
        raise NvmlFailure(Code.NOT_SUPPORTED)
    return 0


_ACTIONS = {
    RecoveryAction.NONE: 0,
    RecoveryAction.RESET: 1,
    RecoveryAction.REBOOT: 2,
    RecoveryAction.DRAIN_P2P: 3,
    RecoveryAction.DRAIN_AND_RESET: 4,
}


def _margin(read: Callable[[Thermal], int | None]) -> Callable[[NvmlCall], int]:
    return lambda call: known(read(thermal(call, "margin")))


def _corrected(call: NvmlCall) -> int:
    return _errors(call, uncorrected=False)


def _uncorrected(call: NvmlCall) -> int:
    return _errors(call, uncorrected=True)


def _links(call: NvmlCall) -> int:
    return len(call.node.nvlinks[call.gpu.identity.index])


FIELDS: dict[int, Callable[[NvmlCall], int]] = {
    pynvml.NVML_FI_DEV_ECC_CURRENT: _default_mode,
    pynvml.NVML_FI_DEV_ECC_PENDING: _default_mode,
    pynvml.NVML_FI_DEV_ECC_SBE_VOL_TOTAL: _corrected,
    pynvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL: _uncorrected,
    pynvml.NVML_FI_DEV_ECC_SBE_AGG_TOTAL: _corrected,
    pynvml.NVML_FI_DEV_ECC_DBE_AGG_TOTAL: _uncorrected,
    pynvml.NVML_FI_DEV_NVLINK_LINK_COUNT: _links,
    pynvml.NVML_FI_DEV_PCIE_REPLAY_COUNTER: lambda _: 0,
    pynvml.NVML_FI_DEV_REMAPPED_COR: lambda call: _rows(call)[0],
    pynvml.NVML_FI_DEV_REMAPPED_UNC: lambda call: _rows(call)[1],
    pynvml.NVML_FI_DEV_REMAPPED_PENDING: lambda call: _rows(call)[2],
    pynvml.NVML_FI_DEV_REMAPPED_FAILURE: lambda call: _rows(call)[3],
    193: _margin(lambda limits: limits.shutdown),
    194: _margin(lambda limits: limits.slowdown),
    196: _margin(lambda _: 0),
    pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION: energy_mj,
    230: lambda call: known(_ACTIONS.get(call.gpu.recovery_action)),
}
"""By NVML's field id. Those from 193 on have no names in older bindings: margins (shutdown,
slowdown, most) and recovery action."""

POWER_FIELDS: dict[int, Mapping[PowerScope, Callable[[NvmlCall], int]]] = {
    185: {PowerScope.GPU: average_power_mw, PowerScope.MEMORY: memory_power_mw},
    186: {PowerScope.GPU: power_mw},
    187: {PowerScope.GPU: lambda call: limits_mw(call)[0]},
    188: {PowerScope.GPU: lambda call: limits_mw(call)[1]},
    189: {PowerScope.GPU: default_limit_mw},
    190: {PowerScope.GPU: limit_mw},
    192: {PowerScope.GPU: limit_mw},
}
"""Power by field id and scope: average, instant, least, most, default, present and requested limit.

No simulated board reports the power of its module.
"""

_SIGNED = frozenset({193, 194, 196})


def _field(value: ctypes.Structure, answer: Answer | None) -> Callable[[NvmlCall], int]:
    """What reads a field; the scope is a link's number in fields of links, 0 in most others."""
    if answer is not None and answer.code is not Code.SUCCESS:
        raise NvmlFailure(answer.code)
    if value.fieldId in POWER_FIELDS:
        scope = PowerScope(choice(value.scopeId, *PowerScope))
        response = POWER_FIELDS[value.fieldId].get(scope)
    else:
        response = FIELDS.get(value.fieldId)
    if response is None:
        raise NvmlFailure(Code.NOT_SUPPORTED)
    return response


def _filled(call: NvmlCall, value: ctypes.Structure) -> ctypes.Structure:
    value.timestamp, value.latencyUsec = int(call.node.now_s * 1e6), 0
    answer = replace(call, function=f"field:{value.fieldId}").answer
    try:
        number = _field(value, answer)(call)
    except NvmlFailure as failure:
        value.nvmlReturn = failure.code
        return value
    if answer is not None and isinstance(answer.value, int):
        number = answer.value
    value.nvmlReturn = Code.SUCCESS
    if value.fieldId in _SIGNED:
        value.valueType, value.value.siVal = pynvml.NVML_VALUE_TYPE_SIGNED_INT, number
    else:
        value.valueType, value.value.ullVal = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, number
    return value


@fields(
    LIVE,
    "nvmlDeviceGetFieldValues",
    *(DEVICE, U32, inout_by(pynvml.c_nvmlFieldValue_t, 1)),
    note="ECC, rows, power by scope, margins, recovery action, replays, number of NVLinks",
)
def _fill(call: NvmlCall) -> list[ctypes.Structure]:
    return [_filled(call, one) for one in call.structures]
