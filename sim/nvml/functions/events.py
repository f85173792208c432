"""Event sets."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from sim.nvml.abi import DEVICE, EVENT_SET, U32, U64, EventSet, Function, Source, out
from sim.nvml.codes import Code, NvmlFailure
from sim.nvml.eventsets import DOUBLE_BIT_ECC, SINGLE_BIT_ECC, XID
from sim.nvml.structures import EventData, EventDataV1

if TYPE_CHECKING:
    from sim.nvml.call import Call
    from sim.nvml.eventsets import Report


def _create(call: Call) -> int:
    return call.event_sets.create(call.session)


def _free(call: Call) -> tuple[()]:
    call.event_sets.free(call.numbers[0])
    return ()


def _supported(call: Call) -> int:
    return XID | (SINGLE_BIT_ECC | DOUBLE_BIT_ECC if call.profile.ecc else 0)


def _register(call: Call) -> tuple[()]:
    types, event_set = call.numbers
    if types & ~_supported(call):
        raise NvmlFailure(Code.NOT_SUPPORTED)
    call.event_sets.register(event_set, call.gpu.identity.uuid, types)
    return ()


def _take(call: Call) -> Report | None:
    driver = call.node.driver
    if driver.watch_failure(call.node.now_s) is not None:
        raise NvmlFailure(Code.UNKNOWN)
    return call.event_sets.take(call.numbers[0], call.node)


def _wait(call: Call) -> ctypes.Structure | None:
    report = _take(call)
    if report is None:
        return None
    device = call.handles.of(("gpu", report.uuid))
    return EventData(device, report.type, report.data, report.gpu_instance, report.compute_instance)


def _wait_v1(call: Call) -> ctypes.Structure | None:
    report = _take(call)
    if report is None:
        return None
    return EventDataV1(call.handles.of(("gpu", report.uuid)), report.type, report.data)


FUNCTIONS = (
    Function("nvmlEventSetCreate", (out(EventSet),), Source.LIVE, _create),
    Function("nvmlEventSetFree", (EVENT_SET,), Source.LIVE, _free),
    Function(
        "nvmlDeviceGetSupportedEventTypes",
        (DEVICE, out(ctypes.c_uint64)),
        Source.CONSTANT,
        _supported,
        "Xids, and ECC errors where there is ECC",
    ),
    Function("nvmlDeviceRegisterEvents", (DEVICE, U64, EVENT_SET), Source.LIVE, _register),
    Function(
        "nvmlEventSetWait_v2",
        (EVENT_SET, out(EventData), U32),
        Source.LIVE,
        _wait,
        "GPU_IS_LOST once a registered GPU is lost and what came before was taken",
        waits=True,
    ),
    Function(
        "nvmlEventSetWait", (EVENT_SET, out(EventDataV1), U32), Source.LIVE, _wait_v1, waits=True
    ),
)
