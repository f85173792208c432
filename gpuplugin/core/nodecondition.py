"""The texts of Events and of the node condition about a node's GPUs.

Pure. How these reach the API server, and how often, is decided in the daemon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuplugin.core.faults import Fault
    from gpuplugin.core.health import HealthState
    from gpuplugin.core.nodeview import NodeView

MESSAGE_BYTES = 1024
"""The API server refuses a longer message of an Event; a condition is held to the same."""


@dataclass(frozen=True, slots=True)
class GpuReport:
    """A GPU came to a state: `state` is Healthy, Unhealthy or Recovering, `gpu` is its index.

    `reason` and `action` are short texts, empty where there is none; `xid` is the code behind the
    state, if there is one.
    """

    uuid: str
    gpu: str
    state: str
    reason: str = ""
    action: str = ""
    xid: int | None = None

    @property
    def event_reason(self) -> str:
        """The reason of an Event: GPUHealthy, GPUUnhealthy or GPURecovering."""
        return f"GPU{self.state}"

    @property
    def event_type(self) -> str:
        """Warning where something broke, else Normal."""
        return "Warning" if self.state == "Unhealthy" else "Normal"

    @property
    def event_message(self) -> str:
        """GPU, state, reason, Xid and action, in at most `MESSAGE_BYTES`."""
        return _shortened(self._text(f"GPU {self.gpu or 'unknown'} ({self.uuid}) is {self.state}"))

    @property
    def entry(self) -> str:
        """As the message of an Event, for a list of GPUs; the state Unhealthy is left out."""
        state = "" if self.state == "Unhealthy" else f" {self.state}"
        return self._text(f"GPU {self.gpu or 'unknown'} ({self.uuid}){state}")

    def _text(self, head: str) -> str:
        named = self.xid is None or f"Xid {self.xid}" in self.reason
        reason = ", ".join(
            text for text in (self.reason, "" if named else f"Xid {self.xid}") if text
        )
        text = f"{head}: {reason}" if reason else head
        return f"{text}; action: {self.action}" if self.action else text


@dataclass(frozen=True, slots=True)
class Condition:
    """The node condition: `healthy` is None while it is not known; `reason` is CamelCase."""

    healthy: bool | None
    reason: str
    message: str

    @property
    def status(self) -> str:
        """True, False or Unknown, as the API has it."""
        return "Unknown" if self.healthy is None else str(self.healthy)


def report_of(uuid: str, index: str, state: HealthState, fault: Fault | None) -> GpuReport:
    if fault is None:
        return GpuReport(uuid, index, state.value)
    return GpuReport(uuid, index, state.value, fault.reason, fault.action, fault.xid)


def condition_of(view: NodeView) -> Condition:
    """The condition of a node as its view has it, of the GPUs that take part."""
    board, left_out = view.board, view.left_out
    units = {uuid: health for uuid, health in board.units.items() if uuid not in left_out}
    unhealthy = [
        report_of(uuid, view.index(uuid), health.state, health.fault)
        for uuid, health in units.items()
        if not health.healthy
    ]
    return condition_for(unhealthy, len(units), board.blind)


def condition_for(unhealthy: Sequence[GpuReport], total: int, blind: str) -> Condition:
    """The condition of a node with `total` GPUs, of which `unhealthy` are not Healthy.

    `blind` is why the GPUs cannot be watched, empty if they can. The message names as many GPUs as
    fit into `MESSAGE_BYTES`, in the order of their indices, and counts the others.
    """
    if blind:
        return Condition(None, "MonitorBlind", _shortened(f"GPUs cannot be watched: {blind}"))
    if not total:
        return Condition(None, "NoGPU", "no GPU is listed")
    if not unhealthy:
        return Condition(True, "AllGPUsHealthy", f"all GPUs are healthy ({total})")
    by_index = sorted(unhealthy, key=lambda one: (len(one.gpu), one.gpu, one.uuid))
    entries = [one.entry for one in by_index]
    head = f"{len(entries)} of {total} GPUs are not healthy"
    return Condition(False, "GPUsNotHealthy", _listed(head, entries))


def _listed(head: str, entries: Sequence[str]) -> str:
    """The head with all entries that fit; where not even one does, it is cut."""
    for count in range(len(entries), 0, -1):
        more = f", and {len(entries) - count} more" if count < len(entries) else ""
        text = f"{head}: {', '.join(entries[:count])}{more}"
        if len(_encoded(text)) <= MESSAGE_BYTES:
            return _shortened(text)
    return _shortened(f"{head}: {entries[0]}")


def _shortened(text: str) -> str:
    data = _encoded(text)
    if len(data) <= MESSAGE_BYTES:
        return data.decode()
    return f"{data[: MESSAGE_BYTES - 3].decode(errors='ignore')}..."


def _encoded(text: str) -> bytes:
    """UTF-8; names of files that are no text, which errors quote, must not be an error here."""
    return text.encode(errors="replace")
