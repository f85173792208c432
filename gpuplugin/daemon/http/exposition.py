"""The daemon's metrics as Prometheus wants them, made at each scrape from what was counted.

What is counted is in `metrics`, what GPUs and pods use in `usagemetrics`.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from gpuplugin.daemon.http.series import Counter, Family, Histogram
from gpuplugin.rpc.callstats import BOUNDS_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.core import Metric

    from gpuplugin.daemon.http.metrics import CallCounts, Metrics


def make_registry(metrics: Metrics) -> CollectorRegistry:
    """Everything that the daemon exports."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(_Exposition(metrics))
    return registry


def families(metrics: Metrics) -> Iterator[Metric]:
    """What the daemon tells about itself at this moment."""
    yield InfoMetricFamily("gpuplugin_build", "Version of the plugin.", metrics.build)
    for counted in vars(metrics).values():
        if isinstance(counted, Family):
            yield _numbers(counted)
        elif isinstance(counted, Histogram):
            yield _histogram(counted)
    yield from _calls(metrics.calls)


class _Exposition(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterator[Metric]:
        """Nothing: no name is used twice."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The series of this moment."""
        yield from families(self._metrics)
        for source in tuple(self._metrics.sources):
            yield from source.collect()


def _numbers(family: Family) -> Metric:
    kind = CounterMetricFamily if isinstance(family, Counter) else GaugeMetricFamily
    metric = kind(family.name, family.text, labels=family.label_names)
    for labels, value in family.samples():
        metric.add_metric(labels, value)
    return metric


def _histogram(histogram: Histogram) -> Metric:
    counts, sum_s = histogram.counts()
    metric = HistogramMetricFamily(histogram.name, histogram.text)
    metric.add_metric([], _buckets(histogram.bounds_s, counts), sum_s)
    return metric


def _calls(counts: CallCounts) -> Iterator[Metric]:
    seconds = HistogramMetricFamily(
        "gpuplugin_rpc_duration_seconds",
        "Time that a handler took, without the transport.",
        labels=["resource", "method", "code"],
    )
    in_flight = GaugeMetricFamily(
        "gpuplugin_rpc_in_flight",
        "Calls that are being answered.",
        labels=["resource", "method"],
    )
    for resource, stats in list(counts.by_resource.items()):
        for calls in stats.calls():
            labels = [resource, calls.method, calls.code]
            seconds.add_metric(labels, _buckets(BOUNDS_S, calls.by_bucket), calls.seconds)
        for method, count in stats.running().items():
            in_flight.add_metric([resource, method], count)
    yield seconds
    yield in_flight


def _buckets(bounds_s: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Upper bounds with the counts of all that was within, as Prometheus adds them up."""
    names = (*map(repr, bounds_s), "+Inf")
    return [(le, float(sum_)) for le, sum_ in zip(names, accumulate(counts), strict=True)]
