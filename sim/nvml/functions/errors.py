"""What is wrong with a GPU: ECC errors, retired pages, remapped rows."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import pynvml

from sim.nvml.abi import COUNT, DEVICE, U32, Function, Source, array, out
from sim.nvml.call import choice
from sim.nvml.codes import Code, NvmlFailure
from sim.nvml.functions.inventory import architecture

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.nvml.call import Call

_AMPERE = 7
_DRAM = 2
_BANKS = 512
"""Assumed: banks of memory that still have all of their spare rows."""


def has_ecc(call: Call) -> None:
    """Checks that the board has ECC memory.

    Raises:
        NvmlFailure: not supported.
    """
    if not call.profile.ecc:
        raise NvmlFailure(Code.NOT_SUPPORTED)


def errors(call: Call, *, uncorrected: bool) -> int:
    """ECC errors since the driver was loaded."""
    has_ecc(call)
    return call.gpu.uncorrectable_ecc if uncorrected else call.gpu.corrected_ecc


def _total(call: Call) -> int:
    kind, counter = call.numbers
    choice(counter, 0, 1)
    return errors(call, uncorrected=choice(kind, 0, 1) == 1)


def _at_location(call: Call) -> int:
    kind, counter, location = call.numbers
    choice(counter, 0, 1)
    choice(location, *range(8))
    count = errors(call, uncorrected=choice(kind, 0, 1) == 1)
    return count if location == _DRAM else 0


def _detailed(call: Call) -> ctypes.Structure:
    counts: ctypes.Structure = pynvml.c_nvmlEccErrorCounts_t(deviceMemory=_total(call))
    return counts


def _modes(call: Call) -> tuple[int, int]:
    has_ecc(call)
    return 1, 1


def _default_mode(call: Call) -> int:
    has_ecc(call)
    return 1


def has_row_remapper(call: Call) -> bool:
    """True for boards with ECC from Ampere on; those before retire pages."""
    return bool(call.profile.ecc) and architecture(call.gpu) >= _AMPERE


def _rows(call: Call) -> tuple[int, int, int, int]:
    if not has_row_remapper(call):
        raise NvmlFailure(Code.NOT_SUPPORTED)
    return 0, 0, int(call.gpu.row_remap_pending), int(call.gpu.row_remap_failed)


def _histogram(call: Call) -> ctypes.Structure:
    if not has_row_remapper(call):
        raise NvmlFailure(Code.NOT_SUPPORTED)
    values: ctypes.Structure = pynvml.c_nvmlRowRemapperHistogramValues(max=_BANKS)
    return values


def _retires_pages(call: Call) -> None:
    has_ecc(call)
    if has_row_remapper(call):
        raise NvmlFailure(Code.NOT_SUPPORTED)


def _after(
    check: Callable[[Call], None], *lists: list[int]
) -> Callable[[Call], tuple[list[int], ...]]:
    def answer(call: Call) -> tuple[list[int], ...]:
        check(call)
        choice(call.numbers[0], 0, 1)
        return lists

    return answer


def _no_page_pending(call: Call) -> int:
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
