"""Reports health to people: log lines, metrics, and reports of changes and states.

What the kubelet is sent is in `node`; where reports to the API server go is in `cluster`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gpuplugin.core.healthboard import HealthBoard
from gpuplugin.core.nodecondition import condition_of, report_of
from gpuplugin.daemon.http.series import OTHER
from gpuplugin.daemon.logs import log_fact
from hal import EccError, XidError, lookup_xid
from hal.xid import XID_CATALOGUE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gpuplugin.core.healthboard import Transition
    from gpuplugin.core.nodecondition import Condition, GpuReport
    from gpuplugin.core.nodeview import NodeView
    from gpuplugin.daemon.http.metrics import Metrics
    from hal import Event

log = logging.getLogger(__name__)

CLEARED = "cleared"


class HealthLog:
    """One line and one count per fact; event loop only.

    `report` is given the changes since its last call, and the node's condition after them.
    """

    def __init__(
        self,
        metrics: Metrics,
        report: Callable[[Iterable[GpuReport], Condition], None] | None = None,
    ) -> None:
        self._metrics = metrics
        self._report = report
        self._unreported: list[GpuReport] = []
        self._board = HealthBoard()

    def received(self, event: Event, fatal: bool, view: NodeView) -> None:
        uuid = event.uuid or ""
        index = view.index(uuid)
        match event:
            case XidError(xid=code):
                xid = lookup_xid(code)
                # What a driver makes up must not become a series each.
                labels = (uuid if index else "", index, _xid_label(code), xid.action.value)
                self._metrics.xids.labels(*labels).inc()
                log_fact(
                    log,
                    logging.WARNING,
                    "xid",
                    f"Xid {code} on GPU {index or 'unknown'}: {xid.meaning}",
                    uuid=uuid,
                    xid=code,
                    action=xid.action.value,
                    fatal=fatal,
                    gpu_instance=event.gpu_instance,
                    compute_instance=event.compute_instance,
                )
            case EccError(uncorrectable=uncorrectable):
                kind = "uncorrectable" if uncorrectable else "corrected"
                self._metrics.ecc_errors.labels(uuid if index else "", index, kind).inc()

    def changed(self, transition: Transition, view: NodeView, *, by_hand: bool = False) -> None:
        uuid, after, fault = transition.uuid, transition.after, transition.fault
        index = view.index(uuid)
        what = "GPU" if uuid == transition.gpu_uuid else "MIG device"
        if transition.before is None and transition.healthy:
            log.info("%s %s is listed", what, index, extra={"event": "gpu-listed", "uuid": uuid})
            return
        cause = CLEARED if by_hand else fault.cause.value if fault else ""
        xid = fault.xid if fault else None
        action = fault.action if fault else ""
        is_left_out = uuid in view.left_out
        if not is_left_out:
            self._metrics.health_transitions.labels(
                uuid, index, after.value, cause, "" if xid is None else _xid_label(xid), action
            ).inc()
        reason = fault.reason if fault else "cleared by hand" if by_hand else ""
        log_fact(
            log,
            logging.INFO if transition.healthy else logging.WARNING,
            "gpu-health",
            f"{what} {index} is {after.value}" + (f": {reason}" if reason else ""),
            uuid=uuid,
            state=after.value,
            cause=cause,
            reason=reason,
            action=action,
            xid=xid,
        )
        if self._report is not None and not is_left_out:
            self._unreported.append(report_of(uuid, index, after, fault))

    def report(self, view: NodeView) -> None:
        """Report the changes since the last call, and the condition of the node."""
        board = view.board
        if board is not self._board:
            for uuid in self._board.units.keys() - board.units.keys():
                self._metrics.forget_unit(uuid)
            self._board = board
        if self._report is not None and (board.gpus or board.blind):
            reports, self._unreported = self._unreported, []
            self._report(reports, condition_of(view))


def _xid_label(code: int) -> str:
    return str(code) if code in XID_CATALOGUE else OTHER
