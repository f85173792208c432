"""The metrics of a fleet: those of the daemon, of all nodes, with the label `node`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gpuplugin.daemon.http.exposition import view_families
from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.daemon.http.textformat import Family

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuplugin.core.nodeview import NodeView

_LEFT_OUT: Final = frozenset(
    one.name
    for one in (
        Metrics.visible,
        Metrics.reading_age_seconds,
        Metrics.reading_duration_seconds,
        Metrics.gpu_compute_mode,
        Metrics.gpu_clock_hertz,
        Metrics.gpu_throttled,
        Metrics.gpu_ecc_errors,
        Metrics.gpu_row_remap,
    )
)
"""Of hundreds of nodes these would be most of the series, and nobody schedules by them."""


class FleetFamilies:
    """Put together node by node; labels that several metrics of a node have are kept once."""

    def __init__(self) -> None:
        self.by_name: dict[str, Family] = {}

    def add(self, node: str, view: NodeView, now_s: float) -> None:
        kept: dict[tuple[str, ...], Mapping[str, str]] = {}
        for family in view_families(Metrics, view, now_s):
            if family.name in _LEFT_OUT:
                continue
            empty = Family(family.name, family.text, family.kind)
            all_nodes = self.by_name.setdefault(family.name, empty)
            for name, labels, value in family.samples:
                key = (*labels, *labels.values())
                with_node = kept.get(key)
                if with_node is None:
                    with_node = kept[key] = {**labels, "node": node}
                all_nodes.samples.append((name, with_node, value))
