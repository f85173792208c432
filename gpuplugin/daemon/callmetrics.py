"""Series of the kubelet's calls, made at each scrape from what `kubelet.observe` has counted."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from gpuplugin.kubelet.observe import BOUNDS_S, CallStats

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric

_LE = (*map(repr, BOUNDS_S), "+Inf")


class CallMetrics(Collector):
    """The counts of each resource's service; they outlive the sockets that it is served on."""

    def __init__(self) -> None:
        self._of: dict[str, CallStats] = {}

    def of(self, resource: str) -> CallStats:
        """The counts of a resource's calls."""
        return self._of.setdefault(resource, CallStats())

    def remove_by_labels(self, labels: Mapping[str, str]) -> None:
        """The series of a resource end, which is given as `resource`."""
        self._of.pop(labels["resource"], None)

    def describe(self) -> Iterator[Metric]:
        """The series without samples."""
        yield _seconds()
        yield _in_flight()

    def collect(self) -> Iterator[Metric]:
        """The series of this moment."""
        seconds, in_flight = _seconds(), _in_flight()
        for resource, stats in list(self._of.items()):
            for calls in stats.calls():
                counts = accumulate(calls.by_bucket)
                buckets = [(le, float(count)) for le, count in zip(_LE, counts, strict=True)]
                labels = [resource, calls.method, calls.code]
                seconds.add_metric(labels, buckets, calls.seconds)
            for method, count in stats.running().items():
                in_flight.add_metric([resource, method], count)
        yield seconds
        yield in_flight


def _seconds() -> HistogramMetricFamily:
    return HistogramMetricFamily(
        "gpuplugin_rpc_duration_seconds",
        "Time that a handler took, without the transport.",
        labels=["resource", "method", "code"],
    )


def _in_flight() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "gpuplugin_rpc_in_flight",
        "Calls that are being answered.",
        labels=["resource", "method"],
    )
