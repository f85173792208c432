"""What must hold after a fault: a model of the node that knows only what was injected.

Written against docs/health.md, not against the code that it checks: it keeps what is wrong with
each GPU and what ends that, and has no notion of events, probes, periods or states.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

APPLICATION_XIDS = (13, 31, 43, 45, 63)
CONTAINED_XID = 94
LOOK_XID = 154
PASSING_XIDS = (54, 74, 78, 142, 159, 172)
"""No error of an application, but nothing has to be reset: over by themselves."""
RESET_XIDS = (46, 48, 95, 119)
REMAP_FAILED_XID = 64
OFF_THE_BUS_XID = 79
VM_XID = 151
"""Asks for more than a reset, and leaves no trace in the hardware: only its event tells."""
XIDS = (
    *APPLICATION_XIDS,
    CONTAINED_XID,
    LOOK_XID,
    *PASSING_XIDS,
    *RESET_XIDS,
    REMAP_FAILED_XID,
    OFF_THE_BUS_XID,
    VM_XID,
)


class Trouble(Enum):
    """What can be wrong with the driver of the node."""

    DOWN = "driver-down"
    HANG = "driver-hang"
    DEAF = "watch-broken"


class Verdict(Enum):
    """What the kubelet has to be told of a GPU."""

    WELL = "Healthy"
    SICK = "Unhealthy"
    EITHER = "either"


@dataclass(slots=True)
class GpuModel:
    """What is wrong with one GPU."""

    lost: bool = False
    unplugged: bool = False
    replaced: bool = False
    hung: bool = False
    hot: bool = False
    remap_failed: bool = False
    action_pending: bool = False
    told: bool = False
    """The plugin was told of a fault that only a reset ends, and the hardware shows nothing."""
    perhaps_told: bool = False
    """The same, but the plugin may not have heard of it, or may take something for a reset."""
    reset_unseen: bool = False
    """It was reset, and perhaps not looked at since: a fault that comes now may count as ended."""
    contained: bool = False
    """The driver called a memory error contained: the next one may be taken for the same."""

    @property
    def shown(self) -> bool:
        """True if the hardware itself shows a fault at this moment."""
        return self.lost or self.hung or self.hot or self.remap_failed or self.action_pending

    @property
    def verdict(self) -> Verdict:
        """What is to be told while the GPUs are watched."""
        if self.shown or self.told:
            return Verdict.SICK
        return Verdict.EITHER if self.perhaps_told else Verdict.WELL

    def doubt(self) -> None:
        """Something may count as a reset, or the plugin may have forgotten."""
        self.perhaps_told |= self.told
        self.told = False

    def reset(self) -> None:
        """A reset ends what only events tell, and what the driver asked for."""
        self.action_pending = self.told = self.perhaps_told = False
        self.reset_unseen = True


@dataclass(slots=True)
class Oracle:
    """The node: `gpus` by UUID in the order in which they came, `replicas` of each."""

    gpus: dict[str, GpuModel]
    replicas: int
    trouble: Trouble | None = None
    plugin_up: bool = True
    kubelet_up: bool = True
    known: int = 0
    """GPUs that the running plugin listed for certain."""
    ghost: bool = False
    """A plugin that ended while the driver hung left a call behind, which may take events."""
    passing: set[str] = field(default_factory=set)
    """GPUs that must be seen Unhealthy after the last fault, even if not for long."""

    def __post_init__(self) -> None:
        self.known = len(self.gpus)

    @property
    def blind(self) -> bool:
        """True if the plugin cannot watch: then no GPU may be called Healthy."""
        return self.trouble is not None

    @property
    def watched(self) -> bool:
        """True if a fault that is no fault for long has to be noticed."""
        return self.plugin_up and self.kubelet_up and not self.blind

    def verdict(self, uuid: str) -> Verdict:
        """What the kubelet has to be told of a GPU now."""
        if self.blind or not self.plugin_up:
            return Verdict.SICK
        return self.gpus[uuid].verdict

    def uuids(self, verdict: Verdict) -> frozenset[str]:
        """The GPUs with this verdict."""
        return frozenset(uuid for uuid in self.gpus if self.verdict(uuid) is verdict)

    def xid(self, uuid: str, code: int) -> None:
        """An Xid is injected into a GPU."""
        gpu = self.gpus[uuid]
        if code == CONTAINED_XID:
            gpu.contained = True
        if code in (*APPLICATION_XIDS, CONTAINED_XID, LOOK_XID):
            return
        if code in PASSING_XIDS:
            self._passes(uuid)
            return
        if not gpu.lost:
            gpu.lost |= code == OFF_THE_BUS_XID
            gpu.remap_failed |= code == REMAP_FAILED_XID
            gpu.action_pending |= code in (*RESET_XIDS, REMAP_FAILED_XID, OFF_THE_BUS_XID)
        self._tell(gpu)

    def ecc(self, uuid: str, *, uncorrectable: bool) -> None:
        """An ECC error without an Xid; the driver says that nothing is to be done."""
        if uncorrectable and not self.gpus[uuid].contained:
            self._passes(uuid)

    def lose(self, uuid: str) -> None:
        """The GPU stops answering."""
        self.gpus[uuid].lost = True

    def hang(self, uuid: str) -> None:
        """Calls about the GPU do not return until it recovers."""
        gpu = self.gpus[uuid]
        gpu.hung |= not gpu.lost

    def hiccup(self, uuid: str) -> None:
        """Calls about the GPU do not return for a while; that they do again may be a reset."""
        if not self.gpus[uuid].hung:
            self.gpus[uuid].doubt()

    def overheat(self, uuid: str) -> None:
        """The GPU reaches its shutdown temperature, and is lost later."""
        gpu = self.gpus[uuid]
        gpu.hot |= not gpu.lost

    def fail_remap(self, uuid: str) -> None:
        """Remapping a row of memory failed."""
        gpu = self.gpus[uuid]
        gpu.remap_failed |= not gpu.lost

    def unplug(self, uuid: str) -> None:
        """The GPU leaves the bus."""
        self.gpus[uuid].unplugged = self.gpus[uuid].lost = True

    def recover(self, uuid: str) -> None:
        """The GPU is reset, or plugged in again; a failed remap outlives the latter."""
        gpu = self.gpus[uuid]
        gpu.remap_failed &= gpu.unplugged
        gpu.lost = gpu.hung = gpu.hot = gpu.unplugged = False
        gpu.reset()

    def replace(self, uuid: str, successor: str) -> None:
        """Another GPU takes its place; it stays listed, for ever Unhealthy."""
        gpu = self.gpus[uuid]
        gpu.replaced = gpu.lost = True
        gpu.reset_unseen = False
        self.gpus[successor] = GpuModel()

    def break_driver(self, trouble: Trouble) -> None:
        """The driver fails; one that hangs in the middle of a round may look like a reset."""
        self.trouble = trouble
        if trouble is Trouble.HANG:
            for gpu in self.gpus.values():
                gpu.doubt()

    def mend_driver(self) -> None:
        """The driver works again; it was loaded anew unless only waiting for events failed."""
        if self.trouble in (Trouble.DOWN, Trouble.HANG):
            for gpu in self.gpus.values():
                if gpu.replaced:
                    continue
                pending = gpu.action_pending and gpu.lost
                gpu.reset()
                gpu.action_pending = pending
        self.trouble = None
        self.ghost = False

    def plugin_stopped(self) -> None:
        """A plugin that starts anew knows nothing of earlier events."""
        self.plugin_up = False
        self.known = 0
        self.ghost = self.trouble is Trouble.HANG
        for gpu in self.gpus.values():
            gpu.told = gpu.contained = False

    def clear(self) -> None:
        """A person says that all faults are over; what the hardware shows is not."""
        for gpu in self.gpus.values():
            if self.blind:
                gpu.doubt()
            else:
                gpu.told = gpu.perhaps_told = False

    def settled(self) -> None:
        """The kubelet was told of everything."""
        self.passing.clear()
        if self.plugin_up and not self.blind:
            self.known = len(self.gpus)

    def _passes(self, uuid: str) -> None:
        if self.watched and self.gpus[uuid].verdict is Verdict.WELL:
            self.passing.add(uuid)

    def _tell(self, gpu: GpuModel) -> None:
        """An event of a fault that asks for a reset: nobody hears it while nobody can wait."""
        if self.trouble in (Trouble.DOWN, Trouble.DEAF):
            return
        if self.plugin_up and not self.ghost and not gpu.reset_unseen:
            gpu.told = True
        else:
            gpu.perhaps_told = True
