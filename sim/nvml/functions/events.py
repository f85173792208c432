"""Event sets, and the functions that register for events and wait for them."""

from __future__ import annotations

import ctypes
import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hal import EccError, XidError
from hal.nvml.api import Code
from sim.nvml.abi import (
    CONSTANT,
    DEVICE,
    EVENT_SET,
    LIVE,
    U32,
    U64,
    EventData,
    EventDataV1,
    EventSet,
    Functions,
    out,
)
from sim.nvml.call import NvmlFailure

if TYPE_CHECKING:
    from hal import Event
    from sim.node.node import SimulatedNode
    from sim.nvml.call import NvmlCall

function = Functions()

SINGLE_BIT_ECC, DOUBLE_BIT_ECC, XID = 0x1, 0x2, 0x8
NO_INSTANCE = 0xFFFFFFFF
_FIRST = 0x5345_0000_0000
_MOST_SETS = 1024
_MOST_WAITING = 4096
"""Assumed: how many events a set keeps; older ones are dropped."""


@dataclass(frozen=True, slots=True)
class NvmlEvent:
    uuid: str
    type: int
    data: int = 0
    gpu_instance: int = NO_INSTANCE
    compute_instance: int = NO_INSTANCE


@dataclass(slots=True)
class _Set:
    session: int
    types: dict[str, int] = field(default_factory=dict)
    """Registered types by the GPU's UUID."""
    waiting: deque[NvmlEvent] = field(default_factory=lambda: deque(maxlen=_MOST_WAITING))


class EventSets:
    """All event sets of all processes; its callers hold the node still."""

    def __init__(self) -> None:
        self._sets: dict[int, _Set] = {}
        self._handles = itertools.count(_FIRST, 0x40)

    def create(self, session: int) -> int:
        if len(self._sets) >= _MOST_SETS:
            raise NvmlFailure(Code.INSUFFICIENT_RESOURCES)
        handle = next(self._handles)
        self._sets[handle] = _Set(session)
        return handle

    def free(self, handle: int) -> None:
        """Forget a set; a wait for it ends with an invalid argument."""
        self._find(handle)
        del self._sets[handle]

    def end(self, session: int) -> None:
        self._sets = {handle: one for handle, one in self._sets.items() if one.session != session}

    def register(self, handle: int, uuid: str, types: int) -> None:
        types_by_uuid = self._find(handle).types
        types_by_uuid[uuid] = types_by_uuid.get(uuid, 0) | types

    def hear(self, event: Event) -> None:
        report = _report(event)
        if report is None:
            return
        for one in self._sets.values():
            if one.types.get(report.uuid, 0) & report.type:
                one.waiting.append(report)

    def take(self, handle: int, node: SimulatedNode) -> NvmlEvent | None:
        """The next event of a set, if any; raises `NvmlFailure` once a registered GPU is lost."""
        one = self._find(handle)
        if one.waiting:
            return one.waiting.popleft()
        if any(node.gpus[uuid].lost for uuid in one.types):
            raise NvmlFailure(Code.GPU_IS_LOST)
        return None

    def _find(self, handle: int) -> _Set:
        try:
            return self._sets[handle]
        except KeyError:
            raise NvmlFailure(Code.INVALID_ARGUMENT) from None


def _report(event: Event) -> NvmlEvent | None:
    match event:
        case XidError(uuid=str(uuid), xid=xid, gpu_instance=gi, compute_instance=ci):
            return NvmlEvent(
                uuid, XID, xid, NO_INSTANCE if gi is None else gi, NO_INSTANCE if ci is None else ci
            )
        case EccError(uuid=str(uuid), uncorrectable=uncorrectable):
            return NvmlEvent(uuid, DOUBLE_BIT_ECC if uncorrectable else SINGLE_BIT_ECC)
        case _:
            return None  # a wait finds out itself that a GPU is lost


@function(LIVE, "nvmlEventSetCreate", out(EventSet))
def _create(call: NvmlCall) -> int:
    return call.event_sets.create(call.session)


@function(LIVE, "nvmlEventSetFree", EVENT_SET)
def _free(call: NvmlCall) -> tuple[()]:
    call.event_sets.free(call.numbers[0])
    return ()


_WITH_ECC = "Xids, and ECC errors where there is ECC"


@function(
    CONSTANT, "nvmlDeviceGetSupportedEventTypes", DEVICE, out(ctypes.c_uint64), note=_WITH_ECC
)
def _supported(call: NvmlCall) -> int:
    return XID | (SINGLE_BIT_ECC | DOUBLE_BIT_ECC if call.profile.ecc else 0)


@function(LIVE, "nvmlDeviceRegisterEvents", DEVICE, U64, EVENT_SET)
def _register(call: NvmlCall) -> tuple[()]:
    types, event_set = call.numbers
    if types & ~_supported(call):
        raise NvmlFailure(Code.NOT_SUPPORTED)
    call.event_sets.register(event_set, call.gpu.identity.uuid, types)
    return ()


@function(
    LIVE,
    "nvmlEventSetWait_v2",
    *(EVENT_SET, out(EventData), U32),
    note="GPU_IS_LOST once a registered GPU is lost and what came before was taken",
    waits=True,
)
def _wait(call: NvmlCall) -> EventData | None:
    if call.node.driver.watch_failure(call.node.now_s) is not None:
        raise NvmlFailure(Code.UNKNOWN)
    report = call.event_sets.take(call.numbers[0], call.node)
    if report is None:
        return None
    device = call.handles.of(("gpu", report.uuid))
    return EventData(device, report.type, report.data, report.gpu_instance, report.compute_instance)


@function(LIVE, "nvmlEventSetWait", EVENT_SET, out(EventDataV1), U32, waits=True)
def _wait_v1(call: NvmlCall) -> EventDataV1 | None:
    event = _wait(call)
    return None if event is None else EventDataV1(event.device, event.eventType, event.eventData)
