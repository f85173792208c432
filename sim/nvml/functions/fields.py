"""`nvmlDeviceGetFieldValues`: many numbers in one call, each with a code of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pynvml

from hal import RecoveryAction
from sim.nvml.abi import DEVICE, U32, Function, Source, inout_by
from sim.nvml.call import known
from sim.nvml.codes import Code, NvmlFailure
from sim.nvml.functions.board import limit_mw, limits_mw, power_mw, thermal
from sim.nvml.functions.errors import errors, has_ecc, has_row_remapper

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable

    from sim.nvml.call import Call

_ACTIONS = {
    RecoveryAction.NONE: 0,
    RecoveryAction.RESET: 1,
    RecoveryAction.REBOOT: 2,
    RecoveryAction.DRAIN_P2P: 3,
    RecoveryAction.DRAIN_AND_RESET: 4,
}


def _recovery_action(call: Call) -> int:
    return known(_ACTIONS.get(call.gpu.recovery_action))


def _ecc_mode(call: Call) -> int:
    has_ecc(call)
    return 1


def _row_flag(read: Callable[[Call], bool]) -> Callable[[Call], int]:
    def answer(call: Call) -> int:
        if not has_row_remapper(call):
            raise NvmlFailure(Code.NOT_SUPPORTED)
        return int(read(call))

    return answer


def _margin(read: Callable[[Call], int | None]) -> Callable[[Call], int]:
    def answer(call: Call) -> int:
        thermal(call, "margin")
        return known(read(call))

    return answer


def _links(call: Call) -> int:
    return 0 if call.profile.nvlink is None else call.profile.nvlink.links


FIELDS: dict[int, Callable[[Call], int]] = {
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


def _fill(call: Call) -> list[ctypes.Structure]:
    return [_filled(call, one) for one in call.structures]


def _filled(call: Call, value: ctypes.Structure) -> ctypes.Structure:
    value.timestamp, value.latencyUsec = int(call.node.now_s * 1e6), 0
    answer = FIELDS.get(value.fieldId)
    if answer is None:
        value.nvmlReturn = Code.NOT_SUPPORTED
        return value
    try:
        number = answer(call)
    except NvmlFailure as failure:
        value.nvmlReturn = failure.code
        return value
    value.nvmlReturn = Code.SUCCESS
    if value.fieldId in _SIGNED:
        value.valueType, value.value.siVal = pynvml.NVML_VALUE_TYPE_SIGNED_INT, number
    else:
        value.valueType, value.value.ullVal = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, number
    return value


FUNCTIONS = (
    Function(
        "nvmlDeviceGetFieldValues",
        (DEVICE, U32, inout_by(pynvml.c_nvmlFieldValue_t, 1)),
        Source.LIVE,
        _fill,
        "ECC, rows, power, margins, recovery action, replays, number of NVLinks",
    ),
)
