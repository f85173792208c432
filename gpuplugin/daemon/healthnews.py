"""Tells people of health: log lines, metrics and reports of events, changes and states.

What the kubelet is told is in `node`; where reports go is in `nodereports`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gpuplugin.core.health import Status
from gpuplugin.core.news import GpuNews, condition_for
from gpuplugin.daemon.healthrecord import HealthRecord
from hal import EccError, XidError, lookup_xid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gpuplugin.core.faults import Fault
    from gpuplugin.core.health import HealthPolicy
    from gpuplugin.core.healthboard import HealthBoard, Transition
    from gpuplugin.core.news import Condition
    from gpuplugin.daemon.http.metrics import Metrics
    from hal import Event, Gpu

log = logging.getLogger(__name__)

CLEARED = "cleared"
"""The cause of a change that a person asked for."""


class HealthNews:
    """One line and one count per fact; event loop only.

    `report` is told the changes of a moment, and what the node's condition is after them.
    """

    def __init__(
        self,
        metrics: Metrics,
        report: Callable[[Iterable[GpuNews], Condition], None] | None = None,
    ) -> None:
        self._metrics = metrics
        self._report = report
        self._unreported: list[GpuNews] = []
        self.record = HealthRecord()
        self._indices: Mapping[str, str] = {}
        self._shown: set[tuple[str, str]] = set()

    def learn(self, gpus: Mapping[str, Gpu]) -> None:
        """The indices by which people know GPUs (`0`) and MIG devices (`0:1`)."""
        indices: dict[str, str] = {}
        for gpu in gpus.values():
            indices[gpu.uuid] = str(gpu.index)
            indices |= {mig.uuid: f"{gpu.index}:{mig.index}" for mig in gpu.mig_devices}
        self._indices = indices

    def index(self, uuid: str) -> str:
        """The index of a GPU or MIG device, empty if it is not known."""
        return self._indices.get(uuid, "")

    def happened(self, event: Event, policy: HealthPolicy) -> None:
        """The driver reported something."""
        uuid = event.uuid or ""
        index = self.index(uuid)
        match event:
            case XidError(xid=code):
                xid = lookup_xid(code)
                self._metrics.xids.labels(uuid, index, code, xid.action.value).inc()
                log.warning(
                    "Xid %d on GPU %s: %s",
                    code,
                    index or "unknown",
                    xid.meaning,
                    extra={
                        "event": "xid",
                        "uuid": uuid,
                        "xid": code,
                        "action": xid.action.value,
                        "fatal": policy.xids.is_fatal(code),
                        "gpu_instance": event.gpu_instance,
                        "compute_instance": event.compute_instance,
                    },
                )
            case EccError(uncorrectable=uncorrectable):
                kind = "uncorrectable" if uncorrectable else "corrected"
                self._metrics.ecc_errors.labels(uuid, index, kind).inc()

    def changed(self, transition: Transition, *, by_hand: bool = False) -> None:
        """A GPU or MIG device changed its state."""
        uuid, after, fault = transition.uuid, transition.after, transition.fault
        what = "GPU" if uuid == transition.gpu_uuid else "MIG device"
        self.record.changed(
            uuid,
            self.index(uuid),
            after.value,
            fault.reason if fault else "",
            healthy=after is Status.HEALTHY,
        )
        if transition.before is None and after is Status.HEALTHY:
            log.info(
                "%s %s is listed",
                what,
                self.index(uuid),
                extra={"event": "gpu-listed", "uuid": uuid},
            )
            return
        cause = CLEARED if by_hand else fault.cause.value if fault else ""
        xid = fault.xid if fault else None
        action = fault.action if fault else ""
        self._metrics.health_transitions.labels(
            uuid, self.index(uuid), after.value, cause, "" if xid is None else xid, action
        ).inc()
        reason = fault.reason if fault else "cleared by hand" if by_hand else ""
        log.log(
            logging.INFO if after is Status.HEALTHY else logging.WARNING,
            "%s %s is %s%s",
            what,
            self.index(uuid),
            after.value,
            f": {reason}" if reason else "",
            extra={
                "event": "gpu-health",
                "uuid": uuid,
                "state": after.value,
                "cause": cause,
                "reason": reason,
                "action": action,
                "xid": xid,
            },
        )
        if self._report is not None:
            self._unreported.append(self._gpu_news(uuid, after, fault))

    def show(self, board: HealthBoard) -> None:
        """The state of everything on the board; series of what left it end."""
        gauge = self._metrics.gpu_health
        shown: set[tuple[str, str]] = set()
        for uuid, health in board.units.items():
            shown.add((uuid, self.index(uuid)))
            for status in Status:
                gauge.labels(uuid, self.index(uuid), status.value).set(health.status is status)
        for uuid, index in self._shown - shown:
            gauge.remove_by_labels({"uuid": uuid, "gpu": index})
        self._shown = shown
        if self._report is not None and (board.gpus or board.blind):
            news, self._unreported = self._unreported, []
            self._report(news, self._condition(board))

    def _condition(self, board: HealthBoard) -> Condition:
        sick = [
            self._gpu_news(uuid, health.status, health.fault)
            for uuid, health in board.units.items()
            if not health.healthy
        ]
        return condition_for(sick, len(board.units), board.blind)

    def _gpu_news(self, uuid: str, status: Status, fault: Fault | None) -> GpuNews:
        index = self.index(uuid)
        if fault is None:
            return GpuNews(uuid, index, status.value)
        return GpuNews(uuid, index, status.value, fault.reason, fault.action, fault.xid)
