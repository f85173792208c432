"""Event sets: what was registered by whom, and the events that nobody has taken yet."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hal import EccError, XidError
from sim.nvml.codes import Code, NvmlFailure

if TYPE_CHECKING:
    from hal import Event
    from sim.node.node import SimulatedNode

SINGLE_BIT_ECC, DOUBLE_BIT_ECC, XID = 0x1, 0x2, 0x8
NO_INSTANCE = 0xFFFFFFFF
_FIRST = 0x5345_0000_0000
_MOST_WAITING = 4096
"""Assumed: how many events a set keeps; older ones are dropped."""


@dataclass(frozen=True, slots=True)
class Report:
    """An event as NVML reports it."""

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
    waiting: deque[Report] = field(default_factory=lambda: deque(maxlen=_MOST_WAITING))


class EventSets:
    """All event sets of all processes; whoever uses it holds the node still."""

    def __init__(self) -> None:
        self._sets: dict[int, _Set] = {}
        self._handles = itertools.count(_FIRST, 0x40)

    def create(self, session: int) -> int:
        """An empty set of a process; returns its handle."""
        handle = next(self._handles)
        self._sets[handle] = _Set(session)
        return handle

    def free(self, handle: int) -> None:
        """Forget a set; a wait for it ends with an invalid argument."""
        self._find(handle)
        del self._sets[handle]

    def end(self, session: int) -> None:
        """Forget the sets of a process that ended."""
        self._sets = {handle: one for handle, one in self._sets.items() if one.session != session}

    def register(self, handle: int, uuid: str, types: int) -> None:
        """Have these types of events of a GPU in the set, too."""
        types_by_uuid = self._find(handle).types
        types_by_uuid[uuid] = types_by_uuid.get(uuid, 0) | types

    def hear(self, event: Event) -> None:
        """Something happened on the node."""
        report = _report(event)
        if report is None:
            return
        for one in self._sets.values():
            if one.types.get(report.uuid, 0) & report.type:
                one.waiting.append(report)

    def take(self, handle: int, node: SimulatedNode) -> Report | None:
        """The next event of a set; None if there is none yet.

        Raises:
            NvmlFailure: a registered GPU is lost, and all that came before was taken.
        """
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


def _report(event: Event) -> Report | None:
    match event:
        case XidError(uuid=str(uuid), xid=xid, gpu_instance=gi, compute_instance=ci):
            return Report(
                uuid, XID, xid, NO_INSTANCE if gi is None else gi, NO_INSTANCE if ci is None else ci
            )
        case EccError(uuid=str(uuid), uncorrectable=uncorrectable):
            return Report(uuid, DOUBLE_BIT_ECC if uncorrectable else SINGLE_BIT_ECC)
        case _:
            return None  # of a GPU that is lost its set tells when it is waited for
